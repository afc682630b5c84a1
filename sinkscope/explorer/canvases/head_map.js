// The map of one head, token by token.

const HOVER_PAUSE = 40; // ms between two questions about the cell under the pointer
const MAP_HELP =
  "Arrow keys move the part that is shown, plus and minus zoom, 0 or Escape shows everything. " +
  "Shift with an arrow key moves from cell to cell and reads the numbers; Enter chooses the cell's query. " +
  "C copies the part that is shown as a table.";
const MAP_HINT = "wheel zooms · drag moves · shift+drag zooms into a box · click chooses a query · C copies";
let mapsMade = 0; // for ids that are unique in the page

export default {
  render({ model, el }) {
    const life = lifetime();
    const wishes = { view: model.get("view"), asked: null, waiting: null, hovered: null, linked: null, inSinks: false };
    const map = { model, life, root: el, ...wishes, ...buildMap(el) };
    map.redraw = onNextFrame(life, map.stage, () => drawMap(map));
    map.point = pointing(life, el, (tokens) => {
      map.pointed = tokens;
      map.redraw();
    });
    life.follow(model, ["change:frame"], () => takeFrame(map));
    life.follow(model, ["change:tokens"], map.redraw);
    life.follow(model, ["change:query"], () => revealQuery(map));
    life.follow(model, ["change:view"], () => followView(map));
    life.follow(model, ["change:dimmed"], () => showStale(el, map.canvas, model.get("dimmed")));
    life.follow(model, ["msg:custom"], (message) => takeNumbers(map, message));
    life.on(document, "sinkscope-pointed", ({ detail }) => followPointer(map, detail));
    followPage(life, map.stage, map.redraw);
    keepKeys(life, map.canvas, (event) => pressKey(map, event));
    listenToCopies(life, model, el, map.canvas);
    listenToMap(map);
    listenToDrags(map);
    life.ends(() => clearTimeout(map.patience));
    life.ends(() => clearTimeout(map.pause));
    showStale(el, map.canvas, model.get("dimmed"));
    takeFrame(map);
    return () => {
      life.end();
      el.classList.remove("sinkscope", "sinkscope-map");
    };
  },
};

function buildMap(root) {
  root.classList.add("sinkscope", "sinkscope-map");
  const head = element("div", "sinkscope-line", root);
  const caption = element("span", "sinkscope-caption", head);
  const buttons = element("span", "sinkscope-buttons", head);
  const button = (text, label) => {
    const made = element("button", "sinkscope-button", buttons, text);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", label);
    return made;
  };
  const zoomIn = button("+", "zoom in");
  const zoomOut = button("−", "zoom out");
  const zoomAll = button("reset zoom", "show the whole map");
  const ribbon = element("div", "sinkscope-ribbon", root);
  ribbon.setAttribute("role", "note");
  const stage = stageIn(root, "reading the text …");
  const canvas = element("canvas", "sinkscope-canvas", stage);
  const tip = tipIn(stage);
  const said = element("div", "sinkscope-said", root);
  said.hidden = true;
  const spans = element("div", "sinkscope-curves sinkscope-bands", root);
  spans.hidden = true;
  const live = element("div", "sinkscope-unseen", root);
  live.setAttribute("aria-live", "polite");
  const help = element("div", "sinkscope-unseen", root, MAP_HELP);
  help.id = `sinkscope-map-help-${Date.now()}-${mapsMade++}`;
  element("div", "sinkscope-hint", root, MAP_HINT);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "attention map");
  canvas.setAttribute("aria-describedby", help.id);
  ribbon.hidden = true;
  return { caption, zoomIn, zoomOut, zoomAll, stage, canvas, ribbon, tip, said, spans, live };
}

function takeFrame(map) {
  const frame = map.model.get("frame");
  if (frame.rows && map.asked && covers(frame, map.asked)) answered(map);
  map.caption.textContent = frame.caption ?? "";
  map.ribbon.textContent = frame.preview ?? "";
  map.ribbon.hidden = !frame.preview;
  map.said.textContent = frame.said ?? "";
  map.said.hidden = !frame.said;
  askNumbers(map); // those shown belong to another head or policy
  map.redraw();
}

function describeMap({ model, canvas }, frame, view) {
  const query = model.get("query");
  const chosen = `token ${query} "${visible(model.get("tokens")[query] ?? "")}"`;
  const shown = `queries ${view[0]} to ${view[1] - 1}, keys ${view[2]} to ${view[3] - 1} of ${frame.length} tokens`;
  const sinks = frame.sinks ? ` Beside it, widened, keys ${frame.sinks[0]} to ${frame.sinks[1] - 1}.` : "";
  const label = `Attention map, ${frame.caption ?? ""}: ${shown}, ${frame.unit}.${sinks} Chosen query: ${chosen}.`;
  canvas.setAttribute("aria-label", [label, frame.said, frame.preview].filter(Boolean).join(" "));
}

// The cell under the pointer, and whether that is in the strip of the first keys.
function cellAt(map, event) {
  const { x, y, wide, high, sinks } = placed(map);
  const [across, down] = pointIn(map.canvas, event);
  const view = viewOf(map);
  const query = view[0] + Math.floor(((down - y) / high) * (view[1] - view[0]));
  if (query < view[0] || query >= view[1]) return null;
  const inSinks = sinks !== null && across < sinks.x + sinks.wide;
  const [from, size, [low, stop]] = inSinks ? [sinks.x, sinks.wide, sinks.keys] : [x, wide, view.slice(2)];
  const key = low + Math.floor(((across - from) / size) * (stop - low));
  return key >= low && key < stop ? Object.assign([query, key], { inSinks }) : null;
}

// The tooltip names the cell at once; its numbers come from Python, and only those asked for this very cell are shown.
function hover(map, cell, byKey = false) {
  const inSinks = cell?.inSinks ?? false;
  if (map.hovered && cell && sameView(cell, map.hovered) && inSinks === map.inSinks) return;
  map.hovered = cell;
  map.inSinks = inSinks;
  map.byKey = byKey;
  if (cell) askNumbers(map);
  else map.tip.hidden = true;
  map.redraw();
  map.point(cell && { query: cell[0], key: cell[1] });
  const { link } = map.model.get("frame");
  if (link) document.dispatchEvent(new CustomEvent("sinkscope-pointed", { detail: { link, cell, from: map.root } }));
}

// The same cell is outlined in the map that stands beside the one that is pointed at.
function followPointer(map, { link, cell, from }) {
  if (from === map.root || link !== map.model.get("frame").link) return;
  map.linked = cell;
  map.redraw();
}

// A query that was chosen elsewhere is brought into the part that is shown.
function revealQuery(map) {
  const [view, query] = [viewOf(map), map.model.get("query")];
  const [away] = middle(view);
  if (query < view[0] || query >= view[1]) ask(map, panned(view, map.model.get("frame").length ?? 0, query - away, 0));
  map.redraw();
}

function forgetHover(map) {
  hover(map, null);
}

function askNumbers(map) {
  map.numbers = null;
  if (!map.hovered) return;
  showCell(map);
  if (map.pause) return;
  map.pause = setTimeout(() => {
    map.pause = 0;
    if (!map.hovered) return;
    const [query, key] = map.hovered;
    map.model.send({ kind: MESSAGES.HOVER, query, key, request: map.model.get("frame").request });
  }, HOVER_PAUSE);
}

function takeNumbers(map, message) {
  if (message?.kind !== MESSAGES.HOVER || !map.hovered) return;
  const elsewhere = message.query !== map.hovered[0] || message.key !== map.hovered[1];
  const earlier = message.request !== undefined && message.request !== map.model.get("frame").request;
  if (elsewhere || earlier) return;
  map.numbers = message;
  showCell(map);
  if (map.byKey) map.live.textContent = linesOf(map).join(", ");
}

function linesOf(map) {
  const [query, key] = map.hovered;
  const tokens = map.model.get("tokens");
  const exact = (name, write) => `${name} ${map.numbers ? write(map.numbers[name]) : "…"}`;
  const both = `${exact("probability", share)} · ${exact("logit", number)}`;
  const alone = map.numbers?.hidden ? "not seen by this query" : (map.numbers?.words ?? both);
  const numbers = map.numbers?.partner ? pairOf(map) : [alone];
  const named = (token) => {
    const span = spanOf(map.model.get("frame"), token);
    return `${visible(tokens[token] ?? "")}${span ? ` [${visible(span, 24)}]` : ""}`;
  };
  return [`query ${query} ${named(query)}`, `key ${key} ${named(key)}`, ...numbers];
}

// The numbers of what is shown and of what it is compared with, and their difference.
function pairOf({ model, numbers }) {
  const [shown, partner] = model.get("frame").sides ?? ["shown", "compared with"];
  const told = (of, write) => `probability ${write(of.probability)} · logit ${number(of.logit)}`;
  const difference = { probability: numbers.difference, logit: numbers.difference_logit };
  return [
    `${shown}: ${told(numbers, share)}`,
    `${partner}: ${told(numbers.partner, share)}`,
    `difference: ${told(difference, number)}`,
  ];
}

function showCell(map) {
  const { x, y, wide, high, sinks } = placed(map);
  const view = viewOf(map);
  const [query, key] = map.hovered;
  const [from, size, [low, stop]] = map.inSinks ? [sinks.x, sinks.wide, sinks.keys] : [x, wide, view.slice(2)];
  const across = from + ((key + 0.5 - low) / (stop - low)) * size;
  const down = y + ((query + 0.5 - view[0]) / (view[1] - view[0])) * high;
  showTip(map.stage, map.tip, across, down, linesOf(map));
}

function chooseQuery(map, query) {
  map.model.set("query", query);
  map.model.save_changes();
}

function zoom(map, factor, around = middle(viewOf(map))) {
  ask(map, zoomed(viewOf(map), map.model.get("frame").length ?? 0, factor, around));
}

function pressKey(map, event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (event.key in steps) (event.shiftKey ? moveCell : pan)(map, steps[event.key]);
  else if (event.key === "+" || event.key === "=") zoom(map, 0.5);
  else if (event.key === "-") zoom(map, 2);
  else if (event.key === "0" || event.key === "Escape") everything(map);
  else if (event.key === "Enter" && map.hovered) chooseQuery(map, map.hovered[0]);
  else return false;
  return true;
}

function pan(map, [queries, keys]) {
  const view = viewOf(map);
  const [down, across] = [view[1] - view[0], view[3] - view[2]].map((span) => Math.max(1, Math.round(span / 8)));
  ask(map, panned(view, map.model.get("frame").length ?? 0, queries * down, keys * across));
}

// A cell for the keyboard, as the pointer has one. It starts on the diagonal of the chosen query, and goes from the
// first key of the map on into the strip.
function moveCell(map, [queries, keys]) {
  const view = viewOf(map);
  const query = map.model.get("query");
  const [q, k] = map.hovered ?? [query, query];
  const [first, stop] = placed(map).sinks?.keys ?? [view[2], view[2]];
  let [key, inSinks] = [k + keys, map.hovered !== null && map.inSinks];
  if (inSinks && key >= stop) [key, inSinks] = [view[2], false];
  else if (!inSinks && key < view[2] && stop > first) [key, inSinks] = [stop - 1, true];
  key = inSinks ? clamp(key, first, stop - 1) : clamp(key, view[2], view[3] - 1);
  hover(map, Object.assign([clamp(q + queries, view[0], view[1] - 1), key], { inSinks }), true);
}

function listenToMap(map) {
  const { life, canvas } = map;
  life.on(map.zoomIn, "click", () => zoom(map, 0.5));
  life.on(map.zoomOut, "click", () => zoom(map, 2));
  life.on(map.zoomAll, "click", () => everything(map));
  for (const button of [map.zoomIn, map.zoomOut, map.zoomAll]) keepKeys(life, button, () => false);
  life.on(canvas, "pointerleave", () => forgetHover(map));
  life.on(canvas, "blur", () => forgetHover(map));
  life.on(canvas, "dblclick", (event) => {
    const cell = cellAt(map, event);
    if (cell) zoom(map, 0.5, cell);
  });
  const wheel = (event) => {
    const cell = cellAt(map, event);
    const length = map.model.get("frame").length ?? 0;
    const isWhole = sameView(viewOf(map), [0, length, 0, length]);
    if (!cell || (event.deltaY > 0 && isWhole)) return; // nothing left to zoom out of: the page may scroll
    event.preventDefault();
    zoom(map, event.deltaY < 0 ? 0.8 : 1.25, cell);
  };
  life.on(canvas, "wheel", wheel, { passive: false });
}

// One button: a press without a move chooses the query, a drag moves the map, a drag with shift zooms into a box.
function listenToDrags(map) {
  const { life, canvas } = map;
  life.on(canvas, "pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.focus({ preventScroll: true });
    const cell = cellAt(map, event);
    if (!cell) return;
    canvas.setPointerCapture(event.pointerId);
    map.drag = { cell, at: pointIn(canvas, event), view: viewOf(map), isBox: event.shiftKey, moved: false };
  });
  life.on(canvas, "pointermove", (event) => {
    if (map.drag) drag(map, event);
    else hover(map, cellAt(map, event));
  });
  life.on(canvas, "pointerup", (event) => {
    const { drag: done } = map;
    map.drag = null;
    if (!done) return;
    const cell = cellAt(map, event);
    if (!done.moved) chooseQuery(map, done.cell[0]);
    else if (done.isBox && cell) ask(map, boxed(done.cell, cell));
    map.redraw();
  });
  life.on(canvas, "pointercancel", () => {
    map.drag = null;
    map.redraw();
  });
}

function drag(map, event) {
  const [x, y] = pointIn(map.canvas, event);
  const [dx, dy] = [x - map.drag.at[0], y - map.drag.at[1]];
  if (Math.hypot(dx, dy) > 4) map.drag.moved = true;
  if (!map.drag.moved) return;
  forgetHover(map);
  map.drag.now = cellAt(map, event) ?? map.drag.now;
  map.redraw();
  if (map.drag.isBox) return;
  const [q0, q1, k0, k1] = map.drag.view;
  const { wide, high } = placed(map);
  const [queries, keys] = [Math.round((-dy / high) * (q1 - q0)), Math.round((-dx / wide) * (k1 - k0))];
  ask(map, panned(map.drag.view, map.model.get("frame").length ?? 0, queries, keys));
}
