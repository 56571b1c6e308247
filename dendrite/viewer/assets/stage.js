const COMFORTABLE = 0.8; // The scale from which text is easy to read.

/** The tree itself: a canvas that pans, zooms and is clicked, a minimap, and the same for screen readers. */
class Stage {
  /** `select(node)` and `fold(node)` are what a click does. */
  constructor(view, select, fold) {
    Object.assign(this, { view, select, fold });
    this.canvas = h("canvas", { class: "dv-canvas", "aria-hidden": "true" });
    this.map = h("canvas", { class: "dv-map", "aria-hidden": "true" });
    this._items = [0, 1].map((index) => h("div", { role: "treeitem", id: `dv-item-${index}`, class: "dv-hidden" }));
    this.legend = h("div", { class: "dv-legend", "aria-hidden": "true" });
    this.element = h(
      "div",
      { class: "dv-stage", role: "tree", tabindex: 0, "aria-label": "Search tree" },
      this.canvas,
      this.legend,
      this.map,
      this._items,
    );
    this.painter = new TreeCanvas(this.canvas, view);
    this.minimap = new Minimap(this.map, view);
    this._placed = false;
    this._zoom = d3
      .zoom()
      .scaleExtent([0.004, 2.5])
      .clickDistance(4)
      .on("zoom", (event) => {
        this.painter.transform = event.transform;
        this.request();
      });
    d3.select(this.canvas)
      .call(this._zoom)
      .on("dblclick.zoom", null)
      .on("click", (event) => this._click(event));
    d3.select(this.canvas)
      .on("pointermove", (event) => this._hover(event))
      .on("dblclick", (event) => {
        const hit = this.painter.hit(...d3.pointer(event));
        if (hit) this.fold(hit.node);
      });
    d3.select(this.map).on("pointerdown pointermove", (event) => this._travel(event));
  }

  /** Draw before the next frame. */
  request() {
    this._frame ??= requestAnimationFrame(() => {
      this._frame = null;
      this.draw();
    });
  }

  draw() {
    this.painter.draw();
    if (this.map.clientWidth) this.minimap.draw(this.painter.transform, this.painter.width, this.painter.height);
  }

  stop() {
    d3.select(this.canvas).interrupt();
    cancelAnimationFrame(this._frame);
  }

  /** The tree has changed, not only the view of it. */
  repaint() {
    if (this.map.clientWidth) this.minimap.paint();
    this.request();
  }

  _click(event) {
    this.element.focus({ preventScroll: true });
    const hit = this.painter.hit(...d3.pointer(event));
    if (!hit) return;
    if (hit.handle) this.fold(hit.node);
    else this.select(hit.node, { reveal: false });
  }

  _hover(event) {
    const hit = this.painter.hit(...d3.pointer(event));
    this.canvas.style.cursor = hit ? "pointer" : "";
    this.canvas.title = hit ? hit.node.text : "";
  }

  _travel(event) {
    if (!event.buttons) return;
    const [x, y] = this.minimap.invert(...d3.pointer(event));
    this._zoom.translateTo(d3.select(this.canvas), x, y);
  }

  _moved(transform, smooth) {
    const still = !smooth || matchMedia("(prefers-reduced-motion: reduce)").matches;
    const target = d3.select(this.canvas);
    target.interrupt();
    this._zoom.transform(still ? target : target.transition().duration(260).ease(d3.easeCubicOut), transform);
  }

  /** Show a box of the plane as large as it goes, at scales from `least` to `most`. */
  _show({ x0, x1, y0, y1 }, least, most, smooth) {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!width || !height) return;
    const margin = Math.min(56, width * 0.06);
    const fit = Math.min((width - 2 * margin) / (x1 - x0), (height - 2 * margin) / (y1 - y0));
    const k = Math.max(least, Math.min(most, fit));
    const wide = (x1 - x0) * k <= width - margin;
    const x = wide ? (width - (x0 + x1) * k) / 2 : margin - x0 * k;
    this._moved(d3.zoomIdentity.translate(x, (height - (y0 + y1) * k) / 2).scale(k), smooth);
  }

  fit(smooth = true) {
    this._show(this.view.layout.box, 0.004, 1.1, smooth);
  }

  /** The first view, at a size that can be read: all of a small tree, else the best path, else its end. */
  begin() {
    const { layout, path, selected } = this.view;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (this._placed || !selected || !width || !height) return;
    this._placed = true;
    const { x0, x1, y0, y1 } = layout.box;
    if (Math.min(width / (x1 - x0), height / (y1 - y0)) >= COMFORTABLE)
      return this._show(layout.box, READABLE, 1, false);
    let [top, bottom] = d3.extent(path.size ? path : [selected], (node) => node.y);
    if (bottom - top > height / COMFORTABLE) [top, bottom] = [selected.y, selected.y];
    const spare = width - (x1 - x0) * COMFORTABLE;
    // All of it in the middle where it is not too wide, else as far to the left as the selected node allows.
    const right = width - 30 - (selected.x + CARD.width) * COMFORTABLE;
    const x = spare > 0 ? spare / 2 - x0 * COMFORTABLE : Math.min(30 - x0 * COMFORTABLE, right);
    const y = (height - this.map.clientHeight * 0.6) / 2 - ((top + bottom) / 2) * COMFORTABLE;
    return this._moved(d3.zoomIdentity.translate(x, y).scale(COMFORTABLE), false);
  }

  zoomBy(factor) {
    this._zoom.scaleBy(d3.select(this.canvas), factor);
  }

  /** Move the view with what was laid out anew, so that a node which moved by `y` in the plane stays where it was. */
  shift(y) {
    this._zoom.translateBy(d3.select(this.canvas), 0, y);
  }

  /** Bring a node into view, moving no more than it takes. */
  reveal(node) {
    const { transform } = this.painter;
    const k = Math.max(transform.k, READABLE);
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const [left, right] = [node.x * k + transform.x, (node.x + CARD.width) * k + transform.x];
    const middle = node.y * k + transform.y;
    if (k === transform.k && left >= 12 && right <= width - 12 && middle >= 40 && middle <= height - 140) return;
    const x = (width - (2 * node.x + CARD.width) * k) / 2;
    this._moved(d3.zoomIdentity.translate(x, height / 2 - node.y * k).scale(k), true);
  }

  /** Tell a screen reader of the selected node. A new item in turn makes it read even what has only changed. */
  announce() {
    const { selected: node, state } = this.view;
    this._items.reverse();
    const [item, other] = this._items;
    for (const each of this._items)
      for (const name of ["aria-level", "aria-expanded", "aria-selected"]) each.removeAttribute(name);
    other.textContent = "";
    if (!node) return this.element.removeAttribute("aria-activedescendant");
    const siblings = node.parent ? state.children(node.parent) : [node];
    item.setAttribute("aria-level", node.depth + 1);
    item.setAttribute("aria-setsize", siblings.length);
    item.setAttribute("aria-posinset", siblings.indexOf(node) + 1);
    item.setAttribute("aria-selected", "true");
    const children = state.children(node).length;
    if (children) item.setAttribute("aria-expanded", String(!node.collapsed));
    const parts = [
      node.line || "no text",
      STANDINGS[standing(node)],
      count(node.visits, "visit"),
      `mean value ${figure(mean(node), 2)}`,
    ];
    item.textContent = [...parts, count(children, "child", "children")].join(", ");
    return this.element.setAttribute("aria-activedescendant", item.id);
  }

  explain() {
    const { measure, palette, state } = this.view;
    if (measure === "worker") {
      const workers = [...new Set(state.nodes.map((node) => node.worker).filter((worker) => worker !== null))].sort();
      this.legend.replaceChildren(
        ...workers.map((worker) => {
          const swatch = h("i", { class: "dv-swatch" });
          swatch.style.background = palette.worker(worker);
          return h("span", {}, swatch, `worker ${worker}`);
        }),
      );
      return;
    }
    const scale = h("i", { class: "dv-scale" });
    const stops = [0, 0.25, 0.5, 0.75, 1].map((part) => palette.of(part));
    scale.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    this.legend.replaceChildren(h("span", {}, measure), h("span", {}, "0"), scale, h("span", {}, "1"));
  }
}
