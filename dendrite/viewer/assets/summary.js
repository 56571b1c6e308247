/** What was asked, how, and what it had come to at the event shown. */
class Summary {
  constructor(state) {
    this.state = state;
    this.title = h("h1", { class: "dv-name" });
    this.algorithm = h("span", { class: "dv-algorithm" });
    this.oracle = h(
      "span",
      { class: "dv-pill", title: "The search saw rewards that consult a known answer" },
      "oracle",
    );
    this.pill = h("span", { class: "dv-pill" });
    this.prompt = h("p", { class: "dv-prompt" });
    this.figures = h("dl", { class: "dv-totals" });
    this.element = h(
      "section",
      { class: "dv-summary", "aria-label": "Search" },
      h(
        "div",
        { class: "dv-what-for" },
        h("div", { class: "dv-title" }, this.title, this.algorithm, this.pill, this.oracle),
        this.prompt,
      ),
      this.figures,
    );
  }

  update() {
    const { state } = this;
    const header = state.header;
    if (!header) return;
    this.title.textContent = header.task.name;
    this.algorithm.textContent = `by ${header.algorithm}, seed ${header.seed}`;
    this.algorithm.title = JSON.stringify(header.options, null, 1);
    this.oracle.hidden = !header.oracle;
    this.prompt.textContent = header.task.prompt.replace(/\s+/g, " ").trim();
    this.prompt.title = header.task.prompt;
    const totals = state.totals();
    const done = state.resultIndex < state.at;
    const solved = totals.reward !== null && totals.reward >= 1;
    this.pill.textContent = solved ? "Solved" : done ? `Not solved (${state.result.stop_reason})` : "Searching";
    this.pill.className = `dv-pill dv-${solved ? "solved" : done ? "failed" : "flying"}`;
    const rows = [
      ["Nodes", totals.nodes.toLocaleString("en")],
      ["Expansions", totals.calls.toLocaleString("en")],
      ["In flight", totals.flying.toLocaleString("en")],
      ["Tokens", totals.tokens.toLocaleString("en")],
      ["Best reward", figure(totals.reward, 2)],
      ["Seconds", state.now.toFixed(2)],
    ];
    this.figures.replaceChildren(...rows.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
  }
}
