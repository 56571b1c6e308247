const MANY = 400; // Nodes from which a tree is not shown whole at first,
const ROOM = 200; // but about so many of it.

/**
 * Shows a search in `element`: its tree, the timeline of its expansions, and its replay.
 *
 * `events` are those of a trace, schema 1, in order. `push(event)` takes one more in, so that a search can be watched
 * while it runs; a viewer that shows the last event goes on to the new one. `destroy()` empties the element.
 */
class Viewer {
  constructor(element, events = []) {
    this.element = element;
    this.state = new TraceState();
    this.layout = new Layout([]);
    this.selected = null;
    this.path = new Set();
    this.measure = "mean";
    events.forEach((event) => this.state.push(event));
    this._build();
    this.palette = new Palette(this.shell);
    this._listen();
    this.state.seek(this.state.events.length);
    if (this.state.nodes.length > MANY) foldAllBut(ROOM, this.state.roots);
    this._grown();
    this.update();
    this.select(this.state.bestNode() ?? this.state.root, { unfold: true, reveal: false });
    this.stage.explain();
    this.stage.begin();
  }

  /** Nodes that match the filter; null where there is none. */
  get matches() {
    return this.filter.matches;
  }

  push(event) {
    const { state } = this;
    const follows = state.at === state.events.length;
    state.push(event);
    if (follows) state.seek(state.events.length);
    this._later ??= requestAnimationFrame(() => {
      this._later = null;
      this._grown();
      this.update();
      if (!this.selected) this.select(state.root, { reveal: false });
      this.stage.begin();
    });
  }

  destroy() {
    this.replay.play(false);
    cancelAnimationFrame(this._later);
    this.stage.stop();
    this._resize.disconnect();
    document.removeEventListener("keydown", this._onKey);
    this._scheme.removeEventListener("change", this._onScheme);
    this.element.replaceChildren();
  }

  /** Draw at once. */
  draw() {
    this.stage.draw();
    this.timeline.draw();
  }

  _build() {
    const select = (node, how) => this.select(node, how);
    this.summary = new Summary(this.state);
    this.filter = new Filter(
      this,
      () => this.update(),
      (node) => this.select(node, { unfold: true }),
    );
    this.stage = new Stage(this, select, (node) => this.fold(node));
    this.detail = new Detail(this, (node) => this.select(node, { unfold: true }));
    this.replay = new Replay(this.state, (index) => this._seek(index));
    this.lanes = h("canvas", {
      class: "dv-lanes",
      role: "img",
      "aria-label": "Expansions over time, in lanes by worker",
    });
    this.timeline = new Timeline(
      this.lanes,
      this,
      (index) => this.replay.move(index),
      (node) => this.select(node, { unfold: true }),
    );
    const colour = h(
      "select",
      { class: "dv-select", "aria-label": "Colour nodes by", onchange: (event) => this._colour(event.target.value) },
      [...Object.keys(MEASURES), "worker"].map((name) => h("option", { value: name }, `Colour: ${name}`)),
    );
    const button = (label, press, title) =>
      h("button", { type: "button", class: "dv-button", title, onclick: press }, label);
    this.shell = h(
      "div",
      { class: "dv" },
      this.summary.element,
      h(
        "div",
        { class: "dv-toolbar", role: "toolbar", "aria-label": "Tree" },
        this.filter.element,
        h(
          "div",
          { class: "dv-tools" },
          colour,
          button("Fold all", () => this._foldAll(true), "Show the root and its children alone"),
          button("Unfold all", () => this._foldAll(false), "Show all nodes"),
          button("Fit", () => this.stage.fit(), "Show the whole tree (f)"),
        ),
      ),
      this.stage.element,
      this.detail.element,
      h("section", { class: "dv-time", "aria-label": "Timeline" }, this.replay.element, this.lanes),
    );
    this.element.replaceChildren(this.shell);
  }

  _listen() {
    this._onKey = (event) => this._key(event);
    document.addEventListener("keydown", this._onKey);
    this._scheme = matchMedia("(prefers-color-scheme: dark)");
    this._onScheme = () => {
      this.palette = new Palette(this.shell);
      this.stage.explain();
      this.timeline.paint();
      this.update();
    };
    this._scheme.addEventListener("change", this._onScheme);
    this._resize = new ResizeObserver(() => {
      this.stage.begin();
      this.stage.repaint();
      this.timeline.paint();
      this.timeline.draw();
    });
    this._resize.observe(this.stage.element);
    this._resize.observe(this.lanes);
  }

  /** The tree has other nodes, or shows others. */
  _grown() {
    this.layout = new Layout(this.state.roots);
    this.timeline.arrange();
    this.timeline.paint();
  }

  _seek(index) {
    this.state.seek(index + 1);
    this.update();
  }

  update() {
    const best = this.state.bestNode();
    this.path = new Set(best ? lineage(best) : []);
    if (this.selected && !this.state.visible(this.selected)) this.selected = this._nearest(this.selected);
    this.summary.update();
    this.filter.update();
    this.replay.update();
    this.detail.update();
    this.stage.repaint();
    this.timeline.draw();
  }

  /** The closest ancestor that is there. */
  _nearest(node) {
    while (node && !this.state.visible(node)) node = node.parent;
    return node;
  }

  /** Select a node. `unfold` opens all above it, `reveal` brings it into view. */
  select(node, { unfold = false, reveal = true } = {}) {
    if (!node) return;
    if (unfold) {
      const closed = lineage(node).filter((place) => place !== node && place.collapsed);
      closed.forEach((place) => (place.collapsed = false));
      if (closed.length) this._grown();
    }
    this.selected = node;
    this.detail.update();
    this.detail.element.scrollTop = 0;
    this.stage.announce();
    if (reveal) this.stage.reveal(node);
    this.stage.repaint();
    this.timeline.draw();
  }

  fold(node, closed = !node.collapsed) {
    if (!node.children.length) return;
    const before = node.y;
    node.collapsed = closed;
    this._settle();
    this.stage.shift(before - node.y);
  }

  _foldAll(closed) {
    for (const node of this.state.nodes) node.collapsed = closed && node.depth > 0 && node.children.length > 0;
    this._settle();
    this.stage.fit();
  }

  /** Lay out what is unfolded; a selected node that is not any more gives way to the one that hides it. */
  _settle() {
    const hider = this.selected && lineage(this.selected).find((place) => place.collapsed);
    if (hider) this.selected = hider;
    this._grown();
    this.update();
    this.stage.announce();
  }

  _colour(measure) {
    this.measure = measure;
    this.stage.explain();
    this.stage.repaint();
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (typing) {
      if (event.key === "Escape") this.stage.element.focus();
      return;
    }
    const inTree = this.stage.element === document.activeElement;
    const action =
      this._anywhere()[event.key] ??
      (inTree || document.activeElement === document.body ? this._inTree()[event.key] : null);
    if (!action || (event.key === " " && event.target.closest?.("button"))) return;
    event.preventDefault();
    action();
  }

  _anywhere() {
    return {
      "/": () => this.filter.input.focus(),
      ",": () => this.replay.step(-1),
      ".": () => this.replay.step(1),
      " ": () => this.replay.play(!this.replay.playing),
      f: () => this.stage.fit(),
      n: () => this.filter.next(1),
      N: () => this.filter.next(-1),
      "+": () => this.stage.zoomBy(1.3),
      "-": () => this.stage.zoomBy(1 / 1.3),
    };
  }

  /** Arrows go where they point: right to the children, left to the parent, up and down among nodes as deep. */
  _inTree() {
    const node = this.selected ?? this.state.root;
    if (!node) return {};
    const visible = (each) => this.state.visible(each);
    return {
      ArrowRight: () => {
        if (node.collapsed) this.fold(node, false);
        else this.select(this.state.children(node)[0]);
      },
      ArrowLeft: () => this.select(node.parent),
      ArrowUp: () => this.select(this.layout.neighbour(node, -1, visible)),
      ArrowDown: () => this.select(this.layout.neighbour(node, 1, visible)),
      Home: () => this.select(this.state.root),
      End: () => this.select(this.state.bestNode(), { unfold: true }),
      Enter: () => this.fold(node),
    };
  }
}

window.DendriteViewer = function DendriteViewer(element, events) {
  return new Viewer(element, events);
};
