/** Scales from which a card has its text, and from which it is a card and not a patch of colour. */
const READABLE = 0.5;
const SOLID = 0.16;

/** Draws the tree into a canvas, what is in view of it, in as much detail as the scale allows. */
class TreeCanvas {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view; // What to draw: state, layout, palette, selected, best path, matches, measure.
    this.transform = d3.zoomIdentity;
    this.width = this.height = 0;
    this._letters = 0;
  }

  draw() {
    const { context, width, height } = fitCanvas(this.canvas);
    [this.width, this.height] = [width, height];
    const { palette } = this.view;
    context.fillStyle = palette.bg;
    context.fillRect(0, 0, width, height);
    context.save();
    context.translate(this.transform.x, this.transform.y);
    context.scale(this.transform.k, this.transform.k);
    const nodes = this._distinct();
    this._edges(context, nodes);
    this._cards(context, nodes);
    context.restore();
  }

  /** The nodes that are there. Of those that would cover one another from afar, one, but all that stand out. */
  _distinct() {
    const { layout, path, selected, state } = this.view;
    const { k } = this.transform;
    const rows = [];
    return layout.placed.filter((node) => {
      if (!state.visible(node)) return false;
      if (k >= SOLID) return true;
      const row = Math.round(node.y * k);
      const hidden = rows[node.depth] === row && !path.has(node) && node !== selected && standing(node) !== "solved";
      rows[node.depth] = row;
      return !hidden;
    });
  }

  /** The part of the plane that is in view, with a margin for edges' ends. */
  _window() {
    const { x, y, k } = this.transform;
    return { x0: -x / k, y0: -y / k, x1: (this.width - x) / k, y1: (this.height - y) / k };
  }

  _edges(context, nodes) {
    const { state, palette, path } = this.view;
    const frame = this._window();
    const plain = [new Path2D(), new Path2D(), new Path2D()];
    const chosen = new Path2D();
    const { most } = state;
    for (const node of nodes) {
      const parent = node.parent;
      if (!parent || node.x < frame.x0 || parent.x > frame.x1) continue;
      if (Math.max(node.y, parent.y) < frame.y0 || Math.min(node.y, parent.y) > frame.y1) continue;
      const share = node.visits / most;
      const line = path.has(node) ? chosen : plain[share > 0.25 ? 2 : share > 0.04 ? 1 : 0];
      this._edge(line, parent, node);
    }
    const scale = Math.max(1, 0.8 / this.transform.k);
    context.globalAlpha = this.view.matches ? 0.4 : 1;
    context.strokeStyle = palette.edge;
    plain.forEach((line, index) => {
      context.lineWidth = [1, 1.8, 3][index] * scale;
      context.stroke(line);
    });
    context.strokeStyle = palette.accent;
    context.lineWidth = 2.4 * scale;
    context.stroke(chosen);
  }

  _edge(line, parent, node) {
    const [x, middle] = [parent.x + CARD.width, (parent.x + CARD.width + node.x) / 2];
    line.moveTo(x, parent.y);
    if (this.transform.k < SOLID) line.lineTo(node.x, node.y);
    else line.bezierCurveTo(middle, parent.y, middle, node.y, node.x, node.y);
  }

  _cards(context, nodes) {
    const { matches } = this.view;
    const frame = this._window();
    for (const node of nodes) {
      if (node.y + CARD.height < frame.y0 || node.y - CARD.height > frame.y1) continue;
      if (node.x + CARD.width + 40 < frame.x0 || node.x > frame.x1) continue;
      context.globalAlpha = matches && !matches.has(node) ? 0.22 : 1;
      if (this.transform.k < SOLID) this._patch(context, node);
      else this._card(context, node);
    }
    context.globalAlpha = 1;
  }

  _patch(context, node) {
    const least = 1.5 / this.transform.k;
    const [width, height] = [Math.max(CARD.width, least), Math.max(CARD.height * 0.8, least)];
    context.fillStyle = this._colour(node);
    context.fillRect(node.x, node.y - height / 2, width, height);
    if (node === this.view.selected) this._frame(context, node, this.view.palette.accent, 3 / this.transform.k);
  }

  _card(context, node) {
    const { palette, state, selected, path, matches } = this.view;
    const top = node.y - CARD.height / 2;
    const readable = this.transform.k >= READABLE;
    if (node.born === state.at - 1 && node.parent) this._halo(context, node);
    context.fillStyle = readable ? palette.surface : this._colour(node);
    context.beginPath();
    context.roundRect(node.x, top, CARD.width, CARD.height, 7);
    context.fill();
    if (readable) this._content(context, node, top);
    const marked = node === selected || node.flying > 0 || path.has(node);
    context.setLineDash(node.flying ? [5, 4] : node.released && !marked ? [2, 3] : []);
    const colour =
      node === selected || node.flying || path.has(node)
        ? palette.accent
        : matches?.has(node)
          ? palette.muted
          : palette.line;
    this._frame(context, node, colour, node === selected ? 2.4 : marked ? 1.5 : 1);
    context.setLineDash([]);
    const kind = standing(node);
    if (kind !== "open") drawEnd(context, node.x + CARD.width - 15, node.y, kind, palette);
    if (node.collapsed && node.children.length) this._badge(context, node);
    else if (readable && node.children.some((child) => state.visible(child))) this._handle(context, node);
  }

  /** Where a click folds the subtree. */
  _handle(context, node) {
    const { palette } = this.view;
    context.beginPath();
    context.arc(node.x + CARD.width, node.y, 4.5, 0, 2 * Math.PI);
    context.fillStyle = palette.bg;
    context.fill();
    context.strokeStyle = palette.faint;
    context.lineWidth = 1.25;
    context.stroke();
  }

  _content(context, node, top) {
    const { palette } = this.view;
    context.fillStyle = this._colour(node);
    context.beginPath();
    context.roundRect(node.x + 5, top + 6, 4, CARD.height - 12, 2);
    context.fill();
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.font = `12.5px ${palette.mono}`;
    context.letterSpacing = "0.01px"; // Any spacing keeps code from being set in ligatures.
    this._letters ||= context.measureText("0").width;
    const room = Math.floor((CARD.width - (node.ended ? 48 : 26)) / this._letters);
    const line = node.line || "no text";
    context.fillStyle = node.line && !node.released ? palette.ink : palette.muted;
    context.fillText(line.length > room ? `${line.slice(0, room - 1)}…` : line, node.x + 17, node.y - 2.5);
    context.font = `11px ${palette.sans}`;
    context.letterSpacing = "0px";
    context.fillStyle = palette.muted;
    context.fillText(this._caption(node), node.x + 17, node.y + 12.5);
  }

  _caption(node) {
    if (!node.parent) return count(node.visits, "visit");
    if (standing(node) !== "open" && node.reward !== null) return `reward ${figure(node.reward, 2)}`;
    const { measure, state } = this.view;
    const own = measure === "worker" ? node.worker : MEASURES[measure](node, state);
    const shown = own === null ? "" : ` · ${measure} ${measure === "worker" ? own : figure(own, 2)}`;
    return node.visits ? `${count(node.visits, "visit")}${shown}` : `not visited${shown}`;
  }

  _colour(node) {
    const { measure, palette, state } = this.view;
    if (standing(node) === "solved") return palette.good;
    return measure === "worker" ? palette.worker(node.worker) : palette.of(MEASURES[measure](node, state));
  }

  _frame(context, node, colour, width) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.roundRect(node.x, node.y - CARD.height / 2, CARD.width, CARD.height, 7);
    context.stroke();
  }

  _halo(context, node) {
    const alpha = context.globalAlpha;
    context.globalAlpha = 0.18 * alpha;
    context.fillStyle = this.view.palette.accent;
    context.beginPath();
    context.roundRect(node.x - 6, node.y - CARD.height / 2 - 5, CARD.width + 12, CARD.height + 10, 11);
    context.fill();
    context.globalAlpha = alpha;
  }

  _badge(context, node) {
    const { palette, state } = this.view;
    const hidden = below(node, (each) => state.visible(each));
    if (!hidden) return;
    const label = `+${hidden}`;
    context.font = `600 10.5px ${palette.sans}`;
    const width = context.measureText(label).width + 14;
    context.fillStyle = palette.ink;
    context.beginPath();
    context.roundRect(node.x + CARD.width - 8, node.y - 9, width, 18, 9);
    context.fill();
    context.fillStyle = palette.surface;
    context.textBaseline = "middle";
    context.fillText(label, node.x + CARD.width - 1, node.y + 0.5);
  }

  /** The node at a point of the canvas, and whether the point is where its subtree opens and closes. */
  hit(x, y) {
    const [px, py] = this.transform.invert([x, y]);
    const slack = Math.max(0, 4 / this.transform.k - CARD.height / 2);
    for (const node of this.view.layout.placed) {
      if (Math.abs(py - node.y) > CARD.height / 2 + slack || !this.view.state.visible(node)) continue;
      const reach = node.children.length ? 34 : 0;
      if (px < node.x || px > node.x + CARD.width + reach) continue;
      return { node, handle: px > node.x + CARD.width - 8 && reach > 0 };
    }
    return null;
  }
}
