const LABELS = 74; // Width of the lanes' names.
const AXIS = 20; // Height of the axis.

/** Expansions over time: a bar each, in lanes by worker, as many lanes as it had expansions in flight at once. */
class Timeline {
  /** `seek(index)` moves the replay so that the event is the last; `select(node)` selects a node. */
  constructor(canvas, view, seek, select) {
    Object.assign(this, { canvas, view, seek, select });
    this.lanes = [];
    this._bars = [];
    this._picture = document.createElement("canvas");
    canvas.addEventListener("pointerdown", (event) => this._press(event));
    canvas.addEventListener("pointermove", (event) => this._move(event));
    canvas.addEventListener("pointerup", (event) => this._lift(event));
    canvas.addEventListener("pointerleave", () => (canvas.title = ""));
  }

  /** Put each call into the first lane of its worker that is free. */
  arrange() {
    const { state } = this.view;
    const workers = new Set(state.calls.map((call) => call.worker).filter((worker) => worker !== null));
    const only = workers.size === 1 ? [...workers][0] : -1; // Where a call must have run that brought nothing back.
    const groups = d3.group(state.calls, (call) => call.worker ?? only);
    this.lanes = [];
    this._bars = [];
    for (const worker of [...groups.keys()].sort((a, b) => (a < 0 ? 1 : b < 0 ? -1 : a - b))) {
      const free = [];
      for (const call of groups.get(worker)) {
        let slot = free.findIndex((index) => index <= call.start);
        if (slot < 0) slot = free.length;
        free[slot] = call.end;
        this._bars.push({ call, lane: this.lanes.length + slot });
      }
      free.forEach((_, slot) => this.lanes.push({ worker, first: slot === 0, of: free.length }));
    }
  }

  /** Paint all bars anew: they have changed, or their colours or room have. */
  paint() {
    const { width, height, ratio } = fitCanvas(this.canvas);
    [this._picture.width, this._picture.height] = [this.canvas.width, this.canvas.height];
    const start = width < 480 ? 12 : LABELS;
    this._x = d3.scaleLinear([0, this.view.state.end || 1], [start, width - 14]);
    this._pitch = Math.min(18, (height - AXIS - 6) / Math.max(1, this.lanes.length));
    const context = this._picture.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const bar of this._bars) this._bar(context, bar);
  }

  /** Show where the replay is: what is to come is faint. */
  draw() {
    const { state, palette, selected } = this.view;
    const { context, width, height } = fitCanvas(this.canvas);
    if (!this._picture.width) return;
    context.clearRect(0, 0, width, height);
    this._axis(context, width, height);
    if (width >= 480) this._names(context);
    const now = this._x(state.now);
    context.globalAlpha = 0.28;
    context.drawImage(this._picture, 0, 0, width, height);
    context.globalAlpha = 1;
    context.save();
    context.beginPath();
    context.rect(0, 0, now, height);
    context.clip();
    context.drawImage(this._picture, 0, 0, width, height);
    context.restore();
    for (const bar of this._bars) {
      const flying = bar.call.start < state.at && bar.call.end >= state.at;
      if (flying || (selected && selected.call === bar.call)) this._mark(context, bar, flying);
    }
    context.strokeStyle = context.fillStyle = palette.accent;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(now, 0);
    context.lineTo(now, height - AXIS + 4);
    context.stroke();
    context.beginPath();
    context.arc(now, height - AXIS + 4, 3.5, 0, 2 * Math.PI);
    context.fill();
  }

  _axis(context, width, height) {
    const { palette } = this.view;
    context.font = `10.5px ${palette.sans}`;
    context.textBaseline = "middle";
    context.textAlign = "center";
    const ticks = this._x.ticks(Math.max(2, Math.floor(width / 110)));
    const label = this._x.tickFormat(ticks.length);
    for (const tick of ticks) {
      context.strokeStyle = palette.line;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(Math.round(this._x(tick)) + 0.5, 0);
      context.lineTo(Math.round(this._x(tick)) + 0.5, height - AXIS);
      context.stroke();
      context.fillStyle = palette.muted;
      context.fillText(`${label(tick)} s`, Math.max(14, Math.min(width - 18, this._x(tick))), height - AXIS / 2 + 2);
    }
  }

  _names(context) {
    const { palette } = this.view;
    context.textAlign = "left";
    context.fillStyle = palette.muted;
    this.lanes.forEach((lane, index) => {
      if (!lane.first) return;
      const middle = this._y(index) + (lane.of * this._pitch) / 2;
      context.fillText(lane.worker < 0 ? "unplaced" : `worker ${lane.worker}`, 14, middle);
    });
  }

  _y(lane) {
    return 4 + lane * this._pitch;
  }

  _outline(context, { call, lane }) {
    const left = this._x(call.from);
    const width = Math.max(1.5, this._x(call.to ?? this.view.state.end) - left - 1);
    const height = Math.max(1.5, this._pitch - Math.min(3, this._pitch * 0.25));
    context.beginPath();
    if (width < 4) context.rect(left, this._y(lane), width, height);
    else context.roundRect(left, this._y(lane), width, height, Math.min(3, height / 2));
  }

  /** A bar has the colour of the best child that came of it. */
  _bar(context, bar) {
    const { palette } = this.view;
    const { call } = bar;
    const best = call.children.reduce((most, child) => Math.max(most, child.reward ?? child.value ?? 0), 0);
    const solved = call.children.some((child) => standing(child) === "solved");
    context.fillStyle = call.cancelled || call.to === null ? palette.blank : solved ? palette.good : palette.of(best);
    this._outline(context, bar);
    context.fill();
  }

  /** What is in flight has brought nothing yet; what is selected has a frame. */
  _mark(context, bar, flying) {
    const { palette } = this.view;
    this._outline(context, bar);
    context.fillStyle = palette.blank;
    if (flying) context.fill();
    context.strokeStyle = palette.accent;
    context.lineWidth = 1.5;
    context.setLineDash(flying ? [3, 2] : []);
    context.stroke();
    context.setLineDash([]);
  }

  _at(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const lane = Math.floor((y - 4) / this._pitch);
    const time = this._x.invert(x);
    const slack = this._x.invert(x + 2) - time;
    const hit = this._bars.find(
      ({ call, lane: own }) =>
        own === lane && call.from - slack <= time && time <= (call.to ?? this.view.state.end) + slack,
    );
    return { time, call: hit?.call ?? null, x };
  }

  _press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this._from = this._at(event);
    if (!this._from.call) this._scrub(this._from.time);
  }

  _move(event) {
    const place = this._at(event);
    if (this._from && (!this._from.call || Math.abs(place.x - this._from.x) > 4)) {
      this._from.call = null;
      this._scrub(place.time);
    }
    this.canvas.title = place.call ? this._tip(place.call) : "";
  }

  _lift(event) {
    const call = this._from?.call;
    this._from = null;
    if (!call || event.button !== 0) return;
    this.seek(Number.isFinite(call.end) ? call.end : call.start);
    this.select(call.children[0] ?? call.node);
  }

  /** Show the last event that had happened by then. */
  _scrub(time) {
    const { events } = this.view.state;
    this.seek(Math.max(0, d3.bisector((event) => event.time).right(events, time) - 1));
  }

  _tip(call) {
    const took = call.cancelled
      ? "cancelled"
      : call.to === null
        ? "in flight"
        : `${((call.to - call.from) * 1000).toFixed(0)} ms`;
    return `Call ${call.id}: node ${call.node.id}, ${call.children.length} of ${call.n} children, ${took}`;
  }
}
