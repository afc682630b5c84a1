// Answers the canvases as the explorer does beside a kernel: with what the page holds of each setting.

let requests = 0;

// What the canvases take for a model: values by name, listeners, and a message that is answered at once.
function modelOf(values, answer = () => null) {
  const heard = new Map();
  const tell = (event, ...what) => [...(heard.get(event) ?? [])].forEach((listener) => listener(...what));
  const model = {
    get: (name) => values[name],
    set: (name, value) => model.put({ [name]: value }),
    put(changes) {
      Object.assign(values, changes);
      for (const name of Object.keys(changes)) tell(`change:${name}`);
    },
    save_changes: () => {},
    on: (event, listener) => heard.set(event, [...(heard.get(event) ?? []), listener]),
    off: (event, listener) => heard.set(event, (heard.get(event) ?? []).filter((other) => other !== listener)),
    send(question) {
      tell("msg:custom", { ...question, ...(question.kind === MESSAGES.COPY ? copied(model) : answer(question)) });
    },
  };
  return model;
}

// --- what is shown ---------------------------------------------------------------------------------------------------

const state = { setting: 0, partner: -1, ranking: "layer", over: "head", ...ABOUT.opening, view: [] };
const shared = { tokens: ABOUT.tokens, query: state.query, dimmed: false };
const sides = [0, 1].map((at) => ({
  held: null,
  map: modelOf({ ...shared, frame: {}, view: [] }, (asked) => (asked.kind === MESSAGES.HOVER ? numbersAt(sides[at].held, asked) : null)),
  text: modelOf({ ...shared, frame: {}, evicted: [], mode: "query", can_evict: false, why_not: "" }),
}));
const atlas = modelOf({ frame: {}, order: [], scores: [], score_name: "", selected: state.unit, dimmed: false });
const finder = modelOf({ places: ABOUT.places, tokens: ABOUT.tokens, selected: state.unit, query: state.query });
const lines = modelOf({ frame: {}, values: new ArrayBuffer(0), heads: [], query: state.query, dimmed: false });
const losses = modelOf({ ...shared, frame: {} });
const at = (id) => document.getElementById(id);
const LINES = 64; // tokens in a column of lines at most
const CHOICES = ["setting", "partner", "ranking", "over"];

function pooling(side) {
  const tokens = tokensIn(side);
  return tokens > 1 ? ` · the largest of ${tokens} × ${tokens} tokens, but for the first ${ABOUT.sinks} keys` : "";
}

function numbersAt(held, { query, key }) {
  const { side, cell, first, within: off } = pictureOf(held);
  const isFirst = key < ABOUT.sinks;
  const value = isFirst ? first(cellOf(query, ABOUT.rows) * ABOUT.sinks + key) : cell(cellOf(query, side) * side + cellOf(key, side));
  if (Number.isNaN(value)) return { hidden: true };
  const least = 10 ** ABOUT.low;
  const told = value <= least * 1.001 ? `at most ${number(least)}` : `${share(value)} ${off}`;
  const most = isFirst || side === LENGTH ? "" : `largest of ${tokensIn(side)} × ${tokensIn(side)} tokens, `;
  return { words: `${most}probability ${told}` };
}

// A map with as many rows as the strip beside it has.
function withRows({ side, bytes }, rows) {
  const out = new Uint8Array(rows * side);
  for (let row = 0; row < rows; row++) {
    const from = Math.floor((row * side) / rows) * side;
    out.set(bytes.subarray(from, from + side), row * side);
  }
  return { side, bytes: out };
}

function drawSide(side) {
  const { held } = side;
  const picture = pictureOf(held);
  const { side: cells, bytes } = withRows(picture, ABOUT.rows);
  const whole = [0, LENGTH];
  const { high, said } = picture;
  const caption = `${picture.name} · ${held.name}`;
  const scale = { low: ABOUT.low, high, scale: "log", diverging: false, request: ++requests };
  side.map.put({
    pixels: bytes.buffer, sinks: picture.strip.slice().buffer, query: state.query,
    frame: {
      ...scale, rows: ABOUT.rows, cols: cells, query: whole, key: whole, sinks: [0, ABOUT.sinks], length: LENGTH,
      unit: "log10 probability", caption: caption + pooling(cells), preview: "", said,
    },
  });
  side.text.put({
    values: rowOf(picture, state.query).buffer, query: state.query,
    frame: {
      ...scale, query: state.query, unit: "probability", within: picture.within,
      caption: `${caption} · query ${state.query}${pooling(cells)}`,
    },
  });
}

function drawOverview({ held }) {
  const { side, pixels } = thumbnailsOf(held);
  const ranking = held.scores[state.ranking] ? state.ranking : "mass";
  const { labels, places, columns } = ABOUT;
  atlas.put({
    pixels: pixels.buffer, selected: state.unit, order: held.orders[state.ranking] ?? held.orders.layer,
    scores: held.scores[ranking] ?? [], score_name: ABOUT.rankings[ranking] ?? "",
    frame: { side, labels, places, columns, request: ++requests, caption: held.name },
  });
}

// The model as it is, and what is shown beside it, each once.
async function compared() {
  const wanted = [0, state.setting, state.partner].filter((setting) => setting >= 0);
  return Promise.all([...new Set(wanted)].map(reading));
}

// Lines of the layer of the head shown, between the first tokens and those up to the query; none of a pooled map.
function drawBetween({ held }) {
  const layer = ABOUT.places[state.unit][0];
  const units = ABOUT.places.flatMap(([of], unit) => (of === layer ? [unit] : []));
  const isFine = units.every((unit) => mapOf(held, unit).side === LENGTH);
  at("fold").hidden = !isFine;
  if (!isFine || !at("fold").open) return;
  const last = Math.min(LENGTH, Math.max(state.query + 1, LINES));
  const first = Array.from({ length: Math.min(ABOUT.sinks, LENGTH) }, (_, place) => place);
  const from = Math.max(first.length, last - LINES + first.length);
  const places = [...first, ...Array.from({ length: Math.max(0, last - from) }, (_, place) => from + place)];
  const values = units.flatMap((unit) => {
    const [{ bytes }, high] = [mapOf(held, unit), highOf(held, unit)];
    return places.flatMap((query) => places.map((key) => (key > query && ABOUT.causal ? NaN : valueOf(bytes[query * LENGTH + key], high))));
  });
  const kept = lines.get("heads").filter((unit) => units.includes(unit));
  lines.put({
    values: Float32Array.from(values).buffer, query: state.query, heads: kept.includes(state.unit) ? kept : [state.unit],
    frame: {
      units, labels: units.map((unit) => `head ${ABOUT.places[unit][1]}`), places, tokens: places.map((place) => ABOUT.tokens[place]),
      caption: `layer ${layer} · ${held.name}`, request: ++requests,
    },
  });
}

function drawLosses(all) {
  const values = new Float32Array(all.length * LENGTH);
  all.forEach((held, place) => values.set(held.losses, place * LENGTH));
  const names = all.map((held) => held.name);
  losses.put({
    values: values.buffer, query: state.query,
    frame: { names, length: LENGTH, smooth: ABOUT.smooth, request: ++requests, caption: sides[0].held.name },
  });
}

// The likeliest next tokens at the chosen query under each setting.
function drawNext(all) {
  const first = state.query * ABOUT.ranks;
  const each = all.map(({ ids, shares }) =>
    new Map(Array.from(ids.subarray(first, first + ABOUT.ranks), (id, rank) => [id, shares[first + rank]])));
  const best = new Map();
  for (const known of each)
    [...known].slice(0, 6).forEach(([id, probability]) => best.set(id, Math.max(best.get(id) ?? 0, probability)));
  const table = at("next");
  table.replaceChildren();
  element("caption", "", table, `next token after token ${state.query}`);
  const head = element("tr", "", table);
  for (const name of ["token", ...all.map((held) => held.name)]) element("th", "", head, name).scope = "col";
  for (const [id] of [...best].sort((a, b) => b[1] - a[1]).slice(0, 6)) {
    const row = element("tr", "", table);
    element("code", "", element("td", "", row), ABOUT.vocabulary[id] ?? `#${id}`);
    each.forEach((known, place) => {
      const cell = element("td", "", row);
      if (!known.has(id)) return void element("i", "", cell, "not in the top list");
      const bar = element("span", "sinkscope-share", cell);
      bar.style.width = `${60 * known.get(id)}px`;
      bar.style.background = `var(--sinkscope-${["first", "second", "third"][place]})`;
      cell.append(` ${known.get(id) >= 0.9995 ? share(known.get(id)) : known.get(id).toFixed(3)}`);
    });
  }
}

function drawWords(all) {
  const write = (held, text, parent, tag) => {
    const line = element("p", "", parent);
    element(tag, "", line, `${held.name}: `);
    line.append(text);
  };
  at("said").replaceChildren();
  for (const side of sides) if (side.held) write(side.held, side.held.said, at("said"), "b");
  at("continuation").replaceChildren();
  element("b", "", at("continuation"), "greedy continuation");
  for (const held of all) write(held, held.continuation, at("continuation"), "i");
}

// --- what is asked for -----------------------------------------------------------------------------------------------

async function show(changes = {}) {
  Object.assign(state, changes);
  const asked = { ...state };
  const all = await compared();
  if (Object.keys(asked).some((name) => asked[name] !== state[name])) return; // overtaken
  const byNumber = new Map(all.map((held) => [held.setting, held]));
  [sides[0].held, sides[1].held] = [byNumber.get(state.setting), byNumber.get(state.partner) ?? null];
  const isPair = sides[1].held !== null;
  at("board").classList.toggle("sinkscope-pair", isPair);
  for (const id of ["map-1", "text-1"]) at(id).hidden = !isPair;
  for (const id of CHOICES) at(id).value = state[id];
  for (const side of sides) if (side.held) drawSide(side);
  drawOverview(sides[0]);
  finder.put({ selected: state.unit, query: state.query });
  drawBetween(sides[0]);
  drawLosses(all);
  drawNext(all);
  drawWords(all);
}

function choose(name) {
  return (value) => {
    if (value !== state[name]) show({ [name]: value });
  };
}

function wire() {
  const chosen = { query: choose("query"), unit: choose("unit") };
  atlas.on("change:selected", () => chosen.unit(atlas.get("selected")));
  finder.on("change:selected", () => chosen.unit(finder.get("selected")));
  finder.on("change:query", () => chosen.query(finder.get("query")));
  lines.on("change:query", () => chosen.query(lines.get("query")));
  at("fold").addEventListener("toggle", () => drawBetween(sides[0]));
  losses.on("change:query", () => chosen.query(losses.get("query")));
  for (const { map, text } of sides) {
    map.on("change:query", () => chosen.query(map.get("query")));
    text.on("change:query", () => chosen.query(text.get("query")));
    map.on("change:view", () => zoomTogether(map));
  }
  const options = (id, entries) => {
    for (const [value, name] of entries) element("option", "", at(id), name).value = value;
  };
  const names = ABOUT.settings.map(({ name }, setting) => [setting, name]);
  options("setting", names);
  options("partner", [[-1, "nothing"], ...names]);
  options("ranking", Object.entries(ABOUT.rankings));
  options("over", [["head", "one head"], ...Object.entries(ABOUT.over).map(([over, { label }]) => [over, label])]);
  for (const id of CHOICES)
    at(id).addEventListener("change", () => choose(id)(typeof state[id] === "number" ? Number(at(id).value) : at(id).value));
  document.addEventListener("keydown", pressPageKey, true);
}

// Both maps show the same part. The whole map is in the page, so it is also the answer to what is asked for.
function zoomTogether(map) {
  const view = map.get("view");
  if (sameNumbers(view, state.view)) return;
  state.view = view;
  for (const side of sides) {
    if (side.map !== map) side.map.set("view", view);
    if (side.held) side.map.set("frame", { ...side.map.get("frame"), request: ++requests });
  }
}

function sameNumbers(a, b) {
  return a.length === b.length && a.every((value, place) => value === b[place]);
}

function pressPageKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select, input")) return;
  const many = ABOUT.settings.length;
  if (event.key === "s") choose("setting")((state.setting + 1) % many);
  else if (event.key === "S") choose("setting")((state.setting + many - 1) % many);
  else if (event.key === "b") choose("partner")(state.partner < 0 ? partnerFor(state.setting) : -1);
  else return;
  event.preventDefault();
}

// The model as it is, or what differs most from it.
function partnerFor(setting) {
  return setting ? 0 : ABOUT.settings.length - 1;
}

function followTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => (document.body.dataset.jpThemeLight = String(!dark.matches)); // as the canvases are told
  dark.addEventListener("change", follow);
  follow();
}

function tellPrecision() {
  const tokens = tokensIn(ABOUT.side);
  const fine = ABOUT.fine.length;
  const some = fine ? `; ${fine} of the ${UNITS} heads, those with the most attention on the first tokens, are kept token by token` : "";
  const size = tokens > 1 ? `In a map each cell is the largest of ${tokens} × ${tokens} tokens, but for the first ${ABOUT.sinks} keys${some}. ` : "";
  at("precision").textContent =
    `${size}Probabilities in maps and rows have 8 bits on a logarithmic scale from ${number(10 ** ABOUT.low)}: each is right to ` +
    `within ${within(0).replace("± ", "")}. Losses, next tokens, masses and perplexities are as the model gave them.`;
}

async function open() {
  followTheme();
  wire();
  tellPrecision();
  await reading(0);
  const canvases = { atlas: [atlas, "atlas"], losses: [losses, "losses"], finder: [finder, "finder"], lines: [lines, "lines"] };
  sides.forEach(({ map, text }, side) => Object.assign(canvases, { [`map-${side}`]: [map, "map"], [`text-${side}`]: [text, "text"] }));
  for (const [id, [model, kind]] of Object.entries(canvases)) CANVASES[kind].render({ model, el: at(id) });
  await show();
  document.documentElement.dataset.shown = "yes";
  for (let setting = 1; setting < ABOUT.settings.length; setting++) { // before anybody asks
    await new Promise((next) => setTimeout(next, 30));
    thumbnailsOf(await reading(setting));
  }
  document.documentElement.dataset.ready = "yes";
}

open();
