const STATUSES = {
  all: () => true,
  open: (node) => standing(node) === "open",
  ended: (node) => node.ended,
  solved: (node) => standing(node) === "solved",
};

/** Which nodes match a text and a standing. `matches` is null while nothing is filtered. */
class Filter {
  /** `changed()` is called when the filter has; `go(node)` to show a match. */
  constructor(view, changed, go) {
    this.view = view;
    this.go = go;
    this.matches = null;
    this._status = "all";
    this._found = [];
    this.input = h("input", {
      type: "search",
      class: "dv-input",
      placeholder: "Find a thought",
      "aria-label": "Find a thought by its text",
      "aria-keyshortcuts": "/",
      spellcheck: "false",
      autocomplete: "off",
      oninput: changed,
      onkeydown: (event) => this._key(event),
    });
    this.count = h("output", { class: "dv-count", role: "status" });
    this.chips = h(
      "div",
      { class: "dv-chips", role: "group", "aria-label": "Show by standing" },
      Object.keys(STATUSES).map((status) =>
        h(
          "button",
          {
            type: "button",
            class: "dv-chip",
            "data-status": status,
            "aria-pressed": String(status === "all"),
            onclick: () => this._choose(status, changed),
          },
          status[0].toUpperCase() + status.slice(1),
        ),
      ),
    );
    this.element = h(
      "div",
      { class: "dv-filter" },
      h("label", { class: "dv-find" }, icon("search"), this.input, h("kbd", {}, "/")),
      this.chips,
      this.count,
    );
  }

  _choose(status, changed) {
    this._status = status;
    for (const chip of this.chips.children) chip.setAttribute("aria-pressed", String(chip.dataset.status === status));
    changed();
  }

  _key(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      this.next(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape" && this.input.value) {
      event.preventDefault();
      this.input.value = "";
      this.input.dispatchEvent(new Event("input"));
    }
  }

  /** Go to the next match after the selected node, round and round. */
  next(step) {
    if (!this._found.length) return;
    const at = this._found.indexOf(this.view.selected);
    const to = at < 0 ? (step > 0 ? 0 : this._found.length - 1) : (at + step + this._found.length) % this._found.length;
    this.go(this._found[to]);
    this.update();
  }

  update() {
    const text = this.input.value.toLowerCase();
    const { state } = this.view;
    const there = state.nodes.filter((node) => state.visible(node));
    if (!text && this._status === "all") {
      [this.matches, this._found] = [null, []];
      this.count.textContent = count(there.length, "node");
      return;
    }
    this._found = there.filter((node) => STATUSES[this._status](node) && node.lower.includes(text));
    this.matches = new Set(this._found);
    const at = this._found.indexOf(this.view.selected);
    const place = at < 0 ? "" : `${at + 1} / `;
    this.count.textContent = `${place}${this._found.length.toLocaleString("en")} of ${count(there.length, "node")}`;
  }
}
