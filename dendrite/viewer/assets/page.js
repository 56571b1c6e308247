const traces = JSON.parse(document.getElementById("traces").textContent);
const place = document.getElementById("viewer");
const chooser = document.getElementById("chooser");
let shown = null;

function show(index) {
  shown?.destroy();
  shown = window.DendriteViewer(place, traces[index].events);
  document.title = `${traces[index].name} · Dendrite`;
  window.viewer = shown;
}

traces.forEach((trace, index) => chooser.add(new Option(trace.name, index)));
chooser.parentElement.hidden = traces.length < 2;
chooser.addEventListener("change", () => show(Number(chooser.value)));
show(0);
