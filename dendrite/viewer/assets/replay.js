const SHORTEST_REPLAY = 20; // Seconds that a whole search takes to replay at speed 1, unless it is short.
const SLOWEST = 6; // Events a second.

/** The slider and its buttons: which event is the last one shown. */
class Replay {
  /** `seek(index)` shows the search after the event of that index. */
  constructor(state, seek) {
    this.state = state;
    this.seek = seek;
    this.playing = false;
    this._rate = 1;
    const button = (name, label, press) =>
      h("button", { type: "button", class: "dv-round", "aria-label": label, title: label, onclick: press }, icon(name));
    this.toggle = h(
      "button",
      {
        type: "button",
        class: "dv-round dv-play",
        "aria-label": "Play",
        title: "Play (space)",
        onclick: () => this.play(!this.playing),
      },
      icon("play"),
      icon("pause"),
    );
    this.slider = h("input", {
      type: "range",
      class: "dv-slider",
      min: 1,
      step: 1,
      "aria-label": "Event of the search",
      oninput: () => this.move(Number(this.slider.value) - 1),
    });
    const speed = h(
      "select",
      {
        class: "dv-select",
        "aria-label": "Speed of the replay",
        onchange: (event) => (this._rate = Number(event.target.value)),
      },
      [0.25, 1, 4].map((rate) => h("option", { value: rate, selected: rate === 1 }, `${rate}×`)),
    );
    this.place = h("span", { class: "dv-place" });
    this.what = h("span", { class: "dv-what" });
    this.element = h(
      "div",
      { class: "dv-replay", role: "group", "aria-label": "Replay" },
      h(
        "div",
        { class: "dv-buttons" },
        button("first", "First event", () => this.move(0)),
        button("back", "One event back (,)", () => this.step(-1)),
        this.toggle,
        button("forth", "One event on (.)", () => this.step(1)),
        button("last", "Last event", () => this.move(Infinity)),
      ),
      this.slider,
      speed,
      h("div", { class: "dv-event" }, this.place, this.what),
    );
  }

  get index() {
    return this.state.at - 1;
  }

  /** Show event `index` by the user's wish, which ends play. */
  move(index) {
    this.play(false);
    this.seek(Math.max(0, Math.min(index, this.state.events.length - 1)));
  }

  step(by) {
    this.move(this.index + by);
  }

  play(on) {
    if (on === this.playing) return;
    this.playing = on;
    this.toggle.classList.toggle("dv-playing", on);
    this.toggle.setAttribute("aria-label", on ? "Pause" : "Play");
    if (!on) return;
    if (this.index >= this.state.events.length - 1) this.seek(0);
    let shown = this.index;
    let before = performance.now();
    const frame = (now) => {
      if (!this.playing) return;
      const total = this.state.events.length;
      shown += ((now - before) / 1000) * Math.max(SLOWEST, total / SHORTEST_REPLAY) * this._rate;
      before = now;
      if (Math.floor(shown) !== this.index) this.seek(Math.min(Math.floor(shown), total - 1));
      if (this.index >= total - 1) this.play(false);
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  update() {
    const { state } = this;
    this.slider.max = Math.max(1, state.events.length);
    this.slider.value = state.at;
    this.slider.style.setProperty("--done", `${(100 * (state.at - 1)) / Math.max(1, state.events.length - 1)}%`);
    const what = state.describe(this.index);
    const [at, total] = [state.at, state.events.length].map((number) => number.toLocaleString("en"));
    this.place.textContent = `${at} / ${total} · ${state.now.toFixed(3)} s`;
    this.what.textContent = what;
    this.slider.setAttribute("aria-valuetext", `event ${state.at} of ${state.events.length}, ${what}`);
  }
}
