/**
 * A traced search at any of its events. `push` indexes an event; `seek` applies and undoes events one by one, so that
 * replay goes both ways and gives the same tree from either side.
 */
class TraceState {
  constructor() {
    this.events = [];
    this.at = 0; // Events applied: the last one is `events[at - 1]`.
    this.nodes = []; // In the order of arrival.
    this.byId = new Map();
    this.calls = []; // In the order of their starts.
    this.header = null;
    this.root = null; // The first prompt.
    this.roots = [];
    this.result = null;
    this.resultIndex = Infinity;
    this.end = 0; // The latest time.
    this.focus = 0; // The node below which the search goes on.
    this._open = new Map();
    this._undo = [];
  }

  push(event) {
    const index = this.events.push(event) - 1;
    this.end = Math.max(this.end, event.time || 0);
    if (event.event === "search") this.header = event;
    else if (event.event === "root") this.roots.push(this._node(event, null, null, index));
    else if (event.event === "expand") this._start(event, index);
    else if (event.event === "children") this._land(event, index);
    else if (event.event === "cancelled") this._cancel(event, index);
    else if (event.event === "resumed") [this.result, this.resultIndex] = [null, Infinity];
    else if (event.event === "result") this._end(event, index);
    this.root ??= this.roots[0] ?? null;
  }

  _node(record, parent, call, index) {
    const event = this.events[index];
    const node = {
      id: record.node,
      parent,
      call,
      batch: event.batch ?? null,
      born: index,
      time: event.time,
      depth: parent ? parent.depth + 1 : 0,
      text: parent ? record.text : record.node ? "" : (this.header?.task.prompt ?? ""),
      tokens: record.tokens,
      logprobs: record.logprobs ?? [],
      shared: parent ? parent.shared + parent.tokens.length : 0,
      value: record.value ?? null,
      reward: record.reward ?? null,
      ended: Boolean(record.ended),
      finish: record.finish_reason ?? null,
      pages: record.pages ?? null,
      worker: record.worker ?? null,
      children: [],
      visits: 0,
      sum: 0,
      flying: 0,
      released: false,
      collapsed: false,
    };
    node.line = node.text.replace(/\s+/g, " ").trim();
    node.lower = node.text.toLowerCase();
    node.logprob = node.logprobs.length || !node.tokens.length ? node.logprobs.reduce((a, b) => a + b, 0) : null;
    this.nodes.push(node);
    this.byId.set(node.id, node);
    if (parent) parent.children.push(node);
    return node;
  }

  _start(event, index) {
    const call = { id: event.call, node: this.byId.get(event.node), n: event.n, maxTokens: event.max_tokens };
    Object.assign(call, {
      start: index,
      from: event.time,
      end: Infinity,
      to: null,
      children: [],
      worker: null,
      cancelled: false,
    });
    this.calls.push(call);
    this._open.set(call.id, call);
  }

  _land(event, index) {
    const call = this._open.get(event.call);
    if (!call) return;
    this._open.delete(event.call);
    [call.end, call.to] = [index, event.time];
    call.children = event.children.map((child) => this._node(child, call.node, call, index));
    call.worker = call.children[0]?.worker ?? null;
  }

  _cancel(event, index) {
    const call = this._open.get(event.call);
    this._open.delete(event.call);
    if (call) Object.assign(call, { end: index, to: event.time, cancelled: true });
  }

  /** What was in flight when the search ended never returned. */
  _end(event, index) {
    for (const call of this._open.values()) Object.assign(call, { end: index, to: event.time, cancelled: true });
    this._open.clear();
    [this.result, this.resultIndex] = [event, index];
  }

  /** Show the search after its first `count` events. */
  seek(count) {
    const goal = Math.max(0, Math.min(count, this.events.length));
    while (this.at < goal) this._undo.push(this._apply(this.events[this.at], this.at++));
    while (this.at > goal) {
      this.at--;
      this._undo.pop()?.();
    }
  }

  /** Apply one event; returns what undoes it. */
  _apply(event, index) {
    const node = this.byId.get(event.node);
    if (event.event === "backup") return node && this._backUp(node, event.value);
    if (event.event === "release") return node && this._release(node, event.subtree, index);
    if (event.event === "expand") return node && fly(node, 1);
    if (event.event === "children") return node && fly(node, -1);
    if (event.event === "root_moved") {
      const before = this.focus;
      this.focus = event.node;
      return () => (this.focus = before);
    }
    if (event.event === "result" || event.event === "cancelled") {
      const undos = this.calls.filter((call) => call.cancelled && call.end === index).map((call) => fly(call.node, -1));
      return () => undos.forEach((undo) => undo());
    }
    return null;
  }

  _backUp(node, value) {
    const before = [];
    for (let place = node; place; place = place.parent) {
      before.push(place.sum);
      place.visits++;
      place.sum += value;
    }
    return () => {
      for (let place = node, index = 0; place; place = place.parent, index++) {
        place.visits--;
        place.sum = before[index]; // Not a subtraction, which would round.
      }
    };
  }

  _release(node, subtree, index) {
    const changed = [];
    const rest = [node];
    while (rest.length) {
      const place = rest.pop();
      if (place.born >= index) continue;
      if (!place.released) changed.push(place);
      place.released = true;
      if (subtree) rest.push(...place.children);
    }
    return () => changed.forEach((place) => (place.released = false));
  }

  /** The most visits that a tree has. */
  get most() {
    return this.roots.reduce((most, root) => Math.max(most, root.visits), 1);
  }

  get now() {
    return this.at ? this.events[this.at - 1].time : 0;
  }

  visible(node) {
    return node.born < this.at;
  }

  children(node) {
    return node.children.filter((child) => this.visible(child));
  }

  /** Softmax of the summed log-probabilities among the siblings that are there; null where one has none. */
  prior(node) {
    if (!node.parent) return null;
    const logprobs = this.children(node.parent).map((sibling) => sibling.logprob);
    if (logprobs.includes(null)) return null;
    const top = Math.max(...logprobs);
    return Math.exp(node.logprob - top) / logprobs.reduce((total, each) => total + Math.exp(each - top), 0);
  }

  /** The best answer there is: a solution, else the best rewarded end, else the node of the highest mean or value. */
  bestNode() {
    let best = null;
    let rank = [-1, -1];
    for (const node of this.nodes) {
      if (!this.visible(node) || !node.parent) continue;
      const estimate = node.ended ? 0 : (mean(node) ?? node.value ?? 0);
      const own = [node.reward ?? 0, estimate];
      if (own[0] > rank[0] || (own[0] === rank[0] && own[1] > rank[1])) [best, rank] = [node, own];
    }
    return best;
  }

  /** What the search had come to. */
  totals() {
    const totals = { nodes: 0, tokens: 0, calls: 0, flying: 0, reward: null };
    for (const node of this.nodes) {
      if (!this.visible(node)) break;
      totals.nodes++;
      totals.tokens += node.parent ? node.tokens.length : 0;
      if (node.reward !== null) totals.reward = Math.max(totals.reward ?? 0, node.reward);
    }
    for (const call of this.calls) {
      if (call.start >= this.at) break;
      if (call.end < this.at) totals.calls += call.cancelled ? 0 : 1;
      else totals.flying++;
    }
    return totals;
  }

  describe(index) {
    const event = this.events[index];
    if (!event) return "Nothing has happened yet";
    const node = event.node === 0 ? "the root" : `node ${event.node}`;
    switch (event.event) {
      case "search":
        return `Search by ${event.algorithm} begins`;
      case "root":
        return `Prompt computed, ${count(event.tokens.length, "token")}`;
      case "expand":
        return `Call ${event.call} expands ${node} into ${event.n}`;
      case "children":
        return event.children.length
          ? `Call ${event.call} returns ${count(event.children.length, "child", "children")} of ${node}`
          : `Call ${event.call} returns: no room below ${node}`;
      case "cancelled":
        return `Call ${event.call} cancelled`;
      case "backup":
        return `${figure(event.value)} backed up from ${node}`;
      case "release":
        return `KV of ${node}${event.subtree ? " and all below" : ""} released`;
      case "root_moved":
        return `Search goes on below ${node}`;
      case "resumed":
        return "Search resumed";
      case "result":
        return event.solved ? "Search ends: solved" : `Search ends: ${event.stop_reason}`;
      default:
        return event.event;
    }
  }
}

function fly(node, step) {
  node.flying += step;
  return () => (node.flying -= step);
}

function mean(node) {
  return node.visits ? node.sum / node.visits : null;
}

/** One word for what has become of a node. */
function standing(node) {
  if (node.reward !== null && node.reward >= 1) return "solved";
  if (node.ended) return node.reward === null ? "ended" : "failed";
  return "open";
}

function figure(number, digits = 3) {
  return number === null || number === undefined ? "–" : number.toFixed(digits);
}

function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
