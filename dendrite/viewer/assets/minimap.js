/** The whole tree in a corner, with a frame around what is in view. */
class Minimap {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    this._picture = document.createElement("canvas");
  }

  /** Paint the tree anew: it has changed. */
  paint() {
    const { layout, state, palette } = this.view;
    const { width, height, ratio } = fitCanvas(this.canvas);
    [this._picture.width, this._picture.height] = [this.canvas.width, this.canvas.height];
    const context = this._picture.getContext("2d");
    const { x0, x1, y0, y1 } = layout.box;
    // Each way on its own: a tree is far higher than it is wide.
    this._across = d3.scaleLinear([x0, x1], [6, width - 6]);
    this._down = d3.scaleLinear([y0, y1], [6, height - 6]);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const high = Math.max(1, (this._down(CARD.height) - this._down(0)) * 0.7);
    const wide = this._across(CARD.width) - this._across(0);
    for (const node of layout.placed) {
      if (!state.visible(node)) continue;
      context.fillStyle = this.view.path.has(node)
        ? palette.accent
        : standing(node) === "solved"
          ? palette.good
          : palette.edge;
      context.fillRect(this._across(node.x), this._down(node.y) - high / 2, wide, high);
    }
  }

  /** Show where the view is. */
  draw(transform, width, height) {
    const own = fitCanvas(this.canvas);
    const { context } = own;
    context.clearRect(0, 0, own.width, own.height);
    context.drawImage(this._picture, 0, 0, own.width, own.height);
    const [x0, y0] = transform.invert([0, 0]);
    const [x1, y1] = transform.invert([width, height]);
    const [left, top] = [Math.max(1, this._across(x0)), Math.max(1, this._down(y0))];
    const [right, bottom] = [Math.min(own.width - 1, this._across(x1)), Math.min(own.height - 1, this._down(y1))];
    context.strokeStyle = this.view.palette.ink;
    context.lineWidth = 1.25;
    if (right > left && bottom > top)
      context.strokeRect(left, top, Math.max(3, right - left), Math.max(3, bottom - top));
  }

  /** The point of the tree's plane that is shown at a point of the map. */
  invert(x, y) {
    return [this._across.invert(x), this._down.invert(y)];
  }
}
