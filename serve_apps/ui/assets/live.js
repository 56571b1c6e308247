const PROBLEM = /^\s*Numbers: ((?:\d+ )+\d+)\. Target: (\d+)\.\s*$/;
const TRIES = 5; // Times in a row that a stream is taken up again,
const PAUSE = 500; // and milliseconds before each.

const field = (id) => document.getElementById(id);
const status = field("status");
let viewer = null;
let search = null; // The search on show: its id, and the controller that ends its stream.

/** Read server-sent events from a response; calls `take(event, id, data)` for each. */
async function read(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", id: null, data: "" };
      for (const line of block.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (fields.data) take(fields.event, Number(fields.id), JSON.parse(fields.data));
    }
  }
}

async function ask(method, path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (field("key").value) headers.authorization = `Bearer ${field("key").value}`;
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Error(told?.error?.message ?? `${response.status} ${response.statusText}`);
}

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("live-bad", bad);
}

function enable(running) {
  field("cancel").disabled = !running;
  field("branch").disabled = search === null;
}

/** Follow a search from the event after `after`, and take the stream up again where it breaks. */
async function follow(shown, after) {
  let tries = 0;
  for (;;) {
    try {
      const path = `/v1/searches/${shown.id}/events?after=${after}`;
      const response = await ask("GET", path, undefined, shown.control.signal);
      let ended = false;
      await read(response, (kind, id, data) => {
        if (kind === "end") ended = true;
        else [after, tries] = [id, 0];
        if (kind !== "end" && shown === search) show(data);
      });
      if (ended) return after;
    } catch (error) {
      if (error.name === "AbortError") return after;
      if (++tries > TRIES) throw error;
    }
    await new Promise((next) => setTimeout(next, PAUSE));
  }
}

function show(event) {
  if (event.event === "result") say(event.solved ? "Solved." : `Ended: ${event.stop_reason}.`);
  else if (event.event === "stopped") say(event.error ?? `The search was ${event.status}.`, event.status === "failed");
  if (event.event === "stopped") event = { ...event, event: "result", solved: false, stop_reason: event.status, text: "" };
  viewer.push(event);
}

/** Show a search and follow it to its end. The page's address names it from then on, and a reload shows it again. */
async function watch(id) {
  search?.control.abort();
  viewer?.destroy();
  viewer = window.viewer = window.DendriteViewer(field("viewer"), []);
  const shown = (search = { id, control: new AbortController(), after: 0 });
  history.replaceState(null, "", `#${id}`);
  enable(true);
  try {
    shown.after = await follow(shown, 0);
  } finally {
    if (shown === search) enable(false);
  }
}

async function run() {
  const found = PROBLEM.exec(field("problem").value);
  if (!found) return say('A problem reads "Numbers: 3 7 8 25. Target: 92."', true);
  say("Searching …");
  const task = { kind: "countdown", numbers: found[1].split(" ").map(Number), target: Number(found[2]) };
  const budget = { tokens: Number(field("tokens").value) };
  const body = { task, budget, algorithm: field("algorithm").value, seed: Number(field("seed").value), wait: false };
  const started = await (await ask("POST", "/v1/search", body)).json();
  await watch(started.id);
}

async function cancel() {
  field("cancel").disabled = true;
  await ask("DELETE", `/v1/searches/${search.id}`);
}

async function branch() {
  const node = viewer.selected;
  if (!node) return say("Select a node to branch from.", true);
  const shown = search;
  const running = !field("cancel").disabled;
  say(`Branching ${node.parent ? `node ${node.id}` : "the prompt"} …`);
  const answer = await ask("POST", `/v1/searches/${shown.id}/nodes/${node.id}/branch`, { n: Number(field("children").value) });
  const { nodes } = await answer.json();
  if (!running) shown.after = await follow(shown, shown.after);
  say(`Made ${nodes.length === 1 ? "node" : "nodes"} ${nodes.join(", ")}.`);
}

const told = (work) => work.catch((error) => say(error.message, true));
const guarded = (action) => (event) => {
  event.preventDefault();
  told(action());
};
field("ask").addEventListener("submit", guarded(run));
field("cancel").addEventListener("click", guarded(cancel));
field("branch").addEventListener("click", guarded(branch));
const named = /^#([\w-]+)$/.exec(location.hash);
if (named) {
  say("Searching …");
  told(watch(named[1]));
}
