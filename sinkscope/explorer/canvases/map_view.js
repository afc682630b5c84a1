// Which part of the map is wanted: [q0, q1, k0, k1], half-open token ranges. Zooming, panning and asking for a tile.

const SMALLEST_SPAN = 4;
const PATIENCE = 4000; // ms after which the newest wish is sent, even though the last one was never answered

function viewOf(map) {
  const length = map.model.get("frame").length ?? 0;
  const view = map.view;
  const fits = view.length === 4 && view[1] <= length && view[3] <= length && view[0] < view[1] && view[2] < view[3];
  return fits ? view : [0, length, 0, length];
}

// A range of another length in which `token` stays where it was.
function stretched(low, high, length, factor, token) {
  const span = high - low;
  const wanted = factor < 1 ? Math.floor(span * factor) : Math.ceil(span * factor);
  const next = clamp(wanted, Math.min(SMALLEST_SPAN, span, length), length);
  const before = (token + 0.5 - low) / span;
  const start = clamp(Math.round(token + 0.5 - before * next), 0, length - next);
  return [start, start + next];
}

function zoomed(view, length, factor, [query, key]) {
  return [...stretched(view[0], view[1], length, factor, query), ...stretched(view[2], view[3], length, factor, key)];
}

function panned([q0, q1, k0, k1], length, queries, keys) {
  const q = clamp(q0 + queries, 0, length - (q1 - q0));
  const k = clamp(k0 + keys, 0, length - (k1 - k0));
  return [q, q + q1 - q0, k, k + k1 - k0];
}

function middle([q0, q1, k0, k1]) {
  return [Math.floor((q0 + q1 - 1) / 2), Math.floor((k0 + k1 - 1) / 2)];
}

function boxed(from, to) {
  const range = (a, b) => [Math.min(a, b), Math.max(a, b) + 1];
  return [...range(from[0], to[0]), ...range(from[1], to[1])];
}

function sameView(a, b) {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

function covers(frame, view) {
  return frame.query[0] <= view[0] && frame.query[1] >= view[1] && frame.key[0] <= view[2] && frame.key[1] >= view[3];
}

// The old tile is shown stretched at once. Only one request is under way; of those made meanwhile the last is sent.
function ask(map, view) {
  if (sameView(view, viewOf(map))) return;
  map.view = view;
  forgetHover(map);
  map.redraw();
  if (map.asked) map.waiting = view;
  else sendView(map, view);
}

function sendView(map, view) {
  map.waiting = null;
  if (sameView(view, map.model.get("view"))) return;
  map.asked = view;
  map.patience = setTimeout(() => answered(map), PATIENCE);
  map.model.set("view", view);
  map.model.save_changes();
}

function answered(map) {
  clearTimeout(map.patience);
  map.asked = null;
  if (map.waiting) sendView(map, map.waiting);
}

// Python, or another view of the same map, chose the part to show.
function followView(map) {
  const view = map.model.get("view");
  if (map.asked && sameView(view, map.asked)) return;
  clearTimeout(map.patience);
  map.asked = map.waiting = null;
  map.view = view;
  map.redraw();
}

function everything(map) {
  const length = map.model.get("frame").length ?? 0;
  ask(map, [0, length, 0, length]);
}
