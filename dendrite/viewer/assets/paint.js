/** The colours of the page's style sheet, as the canvases need them. */
class Palette {
  constructor(element) {
    const style = getComputedStyle(element);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const name of [
      "bg",
      "surface",
      "line",
      "edge",
      "ink",
      "muted",
      "faint",
      "accent",
      "good",
      "bad",
      "bad-soft",
      "blank",
    ]) {
      this[name] = read(name);
    }
    const stops = [0, 1, 2, 3, 4].map((index) => read(`ramp-${index}`));
    const ramp = d3.interpolateRgbBasis(stops);
    // Canvas parses each colour it is given; a table of few keeps that cheap.
    this._ramp = d3.range(65).map((step) => d3.rgb(ramp(step / 64)).formatHex());
    this._workers = d3.range(6).map((index) => read(`worker-${index}`));
    this.sans = read("sans");
    this.mono = read("mono");
  }

  /** The colour of a figure in [0, 1]; of none, a blank. */
  of(number) {
    if (number === null) return this.blank;
    return this._ramp[Math.round(64 * Math.max(0, Math.min(1, number)))];
  }

  worker(index) {
    return index === null ? this.blank : this._workers[index % this._workers.length];
  }
}

/** What a node's colour can stand for. */
const MEASURES = {
  mean: (node) => mean(node),
  value: (node) => node.value,
  prior: (node, state) => state.prior(node),
};

/** Give a canvas the size of its box in device pixels; returns its context, in CSS pixels. */
function fitCanvas(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height, ratio };
}

/** A disc with a tick, a cross or a dash: how a path has ended. */
function drawEnd(context, x, y, kind, palette) {
  context.fillStyle = { solved: palette.good, failed: palette["bad-soft"], ended: palette.blank }[kind];
  context.beginPath();
  context.arc(x, y, 7, 0, 2 * Math.PI);
  context.fill();
  context.strokeStyle = { solved: palette.surface, failed: palette.bad, ended: palette.muted }[kind];
  context.lineWidth = 1.6;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  if (kind === "solved") {
    context.moveTo(x - 3, y + 0.2);
    context.lineTo(x - 0.8, y + 2.4);
    context.lineTo(x + 3.2, y - 2.4);
  } else if (kind === "failed") {
    context.moveTo(x - 2.4, y - 2.4);
    context.lineTo(x + 2.4, y + 2.4);
    context.moveTo(x + 2.4, y - 2.4);
    context.lineTo(x - 2.4, y + 2.4);
  } else {
    context.moveTo(x - 2.8, y);
    context.lineTo(x + 2.8, y);
  }
  context.stroke();
}
