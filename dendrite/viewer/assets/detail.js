const STANDINGS = { solved: "Solved", failed: "Ended", ended: "Ended, reward not seen", open: "Open" };

/** All that is known of the selected node at the event shown. */
class Detail {
  /** `select(node)` selects another one. */
  constructor(view, select) {
    this.view = view;
    this.select = select;
    this.element = h("aside", { class: "dv-detail", "aria-label": "Selected node" });
  }

  update() {
    const { selected: node, state } = this.view;
    if (!node || !state.visible(node)) {
      this.element.replaceChildren(h("p", { class: "dv-hint" }, "Select a node to see what is known of it."));
      return;
    }
    this.element.replaceChildren(
      this._head(node),
      this._path(node),
      this._figures(node),
      this._tokens(node),
      this._probabilities(node) ?? "",
      this._origin(node),
      this._children(node) ?? "",
    );
  }

  _head(node) {
    const kind = standing(node);
    const crumbs = lineage(node).map((place, index, path) => {
      const name = place.parent ? String(place.id) : "root";
      if (index === path.length - 1) return h("span", { "aria-current": "true" }, name);
      return h("button", { type: "button", class: "dv-crumb", onclick: () => this.select(place) }, name);
    });
    return h(
      "header",
      { class: "dv-head" },
      h("nav", { class: "dv-crumbs", "aria-label": "Path from the root" }, crumbs),
      h(
        "div",
        { class: "dv-title" },
        h("h2", {}, node.parent ? `Node ${node.id}` : "Prompt"),
        h("span", { class: `dv-pill dv-${kind}` }, STANDINGS[kind]),
        node.flying ? h("span", { class: "dv-pill dv-flying" }, `${node.flying} in flight`) : null,
        node.released ? h("span", { class: "dv-pill" }, "KV released") : null,
      ),
    );
  }

  /** The text of the whole path: the ancestors' faint, the node's own not. */
  _path(node) {
    const path = lineage(node);
    const parts = path.map((place) => h("span", { class: place === node ? "dv-own" : "dv-inherited" }, place.text));
    return h("pre", { class: "dv-text", tabindex: 0, "aria-label": "Text of the path" }, parts);
  }

  _figures(node) {
    const { state } = this.view;
    const bar = (number) => {
      const fill = h("i", {});
      fill.style.width = `${100 * Math.max(0, Math.min(1, number ?? 0))}%`;
      return h("span", { class: "dv-bar" }, fill);
    };
    const rows = [
      ["Visits", node.visits.toLocaleString("en"), node.visits / state.most],
      ["Mean value", figure(mean(node)), mean(node)],
      ["Value", figure(node.value), node.value],
      ["Prior", figure(state.prior(node)), state.prior(node)],
      ["Reward", figure(node.reward), node.reward],
    ];
    return h(
      "dl",
      { class: "dv-figures" },
      rows.map(([name, text, part]) => h("div", {}, h("dt", {}, name), h("dd", {}, text, bar(part)))),
    );
  }

  _tokens(node) {
    const own = node.tokens.length;
    const bar = h(
      "div",
      { class: "dv-split", role: "img", "aria-label": `${node.shared} shared tokens, ${own} own` },
      h("i"),
      h("b"),
    );
    bar.firstChild.style.flexGrow = node.shared;
    bar.lastChild.style.flexGrow = own;
    const sharers = node.parent ? this.view.state.children(node.parent).length - 1 : 0;
    return h(
      "section",
      { class: "dv-part" },
      h("h3", {}, "Tokens"),
      bar,
      h(
        "p",
        { class: "dv-key" },
        h("span", { class: "dv-shared" }, h("strong", {}, node.shared.toLocaleString("en")), " shared with ancestors"),
        h("span", { class: "dv-mine" }, h("strong", {}, own.toLocaleString("en")), " own"),
      ),
      sharers > 0 ? h("p", { class: "dv-note" }, `${count(sharers, "sibling")} read the same ancestors' KV.`) : null,
    );
  }

  /** A bar a token, as high as the model's probability of it. */
  _probabilities(node) {
    if (!node.logprobs.length) return null;
    const bars = node.logprobs.map((logprob, index) => {
      const bar = h("i", { title: `token ${node.tokens[index]}: ${figure(Math.exp(logprob))}` });
      bar.style.height = `${Math.max(3, 100 * Math.exp(logprob))}%`;
      return bar;
    });
    return h(
      "section",
      { class: "dv-part" },
      h("h3", {}, "Probability of each token"),
      h(
        "div",
        { class: "dv-spark", role: "img", "aria-label": `Summed log-probability ${figure(node.logprob)}` },
        bars,
      ),
      h(
        "p",
        { class: "dv-note" },
        `Of the whole thought: ${figure(Math.exp(node.logprob), 4)}, its log ${figure(node.logprob, 4)}`,
      ),
    );
  }

  _origin(node) {
    const rows = [
      ["Depth", node.depth],
      ["Worker", node.worker],
      ["KV pages", node.pages],
      ["Finish", node.finish],
      ["Call", node.call?.id],
      ["Batch", node.batch],
      ["Arrived", `${node.time.toFixed(3)} s`],
    ];
    return h(
      "dl",
      { class: "dv-origin" },
      rows.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(text ?? "–")))),
    );
  }

  _children(node) {
    const children = this.view.state.children(node).sort((a, b) => b.visits - a.visits || a.id - b.id);
    if (!children.length) return null;
    const shown = children.slice(0, 50);
    return h(
      "section",
      { class: "dv-part" },
      h("h3", {}, count(children.length, "child", "children")),
      h(
        "ul",
        { class: "dv-kids" },
        shown.map((child) =>
          h(
            "li",
            {},
            h(
              "button",
              { type: "button", onclick: () => this.select(child) },
              h("span", { class: `dv-dot dv-${standing(child)}` }),
              h("code", {}, child.line || "no text"),
              h("span", {}, `${child.visits} · ${figure(mean(child), 2)}`),
            ),
          ),
        ),
      ),
      children.length > shown.length
        ? h("p", { class: "dv-note" }, `and ${children.length - shown.length} more`)
        : null,
    );
  }
}
