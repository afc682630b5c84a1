// Answers the canvases as the explorer does beside a kernel: with what the page holds of each setting.

const ABOUT = JSON.parse(document.getElementById("about").textContent);
const LENGTH = ABOUT.tokens.length;
const UNITS = ABOUT.labels.length;
const THUMB = 64; // cells of a thumbnail along each side at most
const READINGS = new Map(); // promises of what was unpacked, by setting
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

// --- what the page holds ---------------------------------------------------------------------------------------------

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes that are told by their distance from those of the model as it is.
function restored(told, dense) {
  const bytes = new Uint8Array(told.length);
  for (let i = 0; i < told.length; i++) if (told[i]) bytes[i] = ((told[i] + dense[i] + 253) % 255) + 1;
  return bytes;
}

function reading(setting) {
  if (!READINGS.has(setting)) READINGS.set(setting, readSetting(setting));
  return READINGS.get(setting);
}

async function readSetting(setting) {
  const dense = setting ? await reading(0) : null;
  const names = ["maps", "fine", "numbers"].filter((name) => document.getElementById(`${name}-${setting}`));
  const parts = await Promise.all(names.map((name) => unpacked(`${name}-${setting}`)));
  const { maps, fine = new Uint8Array(), numbers } = Object.fromEntries(names.map((name, at) => [name, parts[at]]));
  const strips = numbers.subarray(0, UNITS * ABOUT.rows * ABOUT.sinks);
  const rest = numbers.slice(strips.length).buffer;
  const guesses = LENGTH * ABOUT.ranks;
  const found = dense
    ? { maps: restored(maps, dense.maps), fine: restored(fine, dense.fine), strips: restored(strips, dense.strips) }
    : { maps, fine, strips };
  return {
    ...ABOUT.settings[setting], ...found, setting,
    losses: new Float32Array(rest, 0, LENGTH),
    shares: new Float32Array(rest, 4 * LENGTH, guesses),
    ids: new Int32Array(rest, 4 * (LENGTH + guesses), guesses),
  };
}

// The map of a head as a whole square, and how many cells each side of it has.
function mapOf({ maps, fine }, unit) {
  const at = ABOUT.fine.indexOf(unit);
  const side = at < 0 ? ABOUT.side : ABOUT.fine_side;
  const [bytes, place] = at < 0 ? [maps, unit] : [fine, at];
  const area = ABOUT.causal ? (side * (side + 1)) / 2 : side * side;
  const part = bytes.subarray(place * area, (place + 1) * area);
  if (!ABOUT.causal) return { side, bytes: part };
  const square = new Uint8Array(side * side);
  for (let row = 0, from = 0; row < side; row++, from += row) square.set(part.subarray(from, from + row + 1), row * side);
  return { side, bytes: square };
}

function stripOf({ strips }, unit) {
  const area = ABOUT.rows * ABOUT.sinks;
  return strips.subarray(unit * area, (unit + 1) * area);
}

// Every cell begins at a whole token.
function cellOf(token, side) {
  return Math.floor((token * side) / LENGTH);
}

function tokensIn(side) {
  return Math.ceil(LENGTH / side);
}

function highOf({ highs }, unit) {
  return highs[unit] ?? 0;
}

// The probability that a byte stands for; NaN where the key is not seen.
function valueOf(byte, high) {
  return byte ? 10 ** (ABOUT.low + ((byte - 1) / 254) * (high - ABOUT.low)) : NaN;
}

// By how much a probability may be off, half a step: "± 2.3%".
function within(high) {
  return `± ${number(100 * (10 ** ((high - ABOUT.low) / 508) - 1))}%`;
}

// One query's row [token]: the first keys one by one, the others as fine as the map is.
function rowOf(held, unit, query) {
  const { side, bytes } = mapOf(held, unit);
  const [strip, high] = [stripOf(held, unit), highOf(held, unit)];
  const row = cellOf(query, side) * side;
  const first = cellOf(query, ABOUT.rows) * ABOUT.sinks;
  return Float32Array.from({ length: LENGTH }, (_, key) => {
    if (key < ABOUT.sinks) return valueOf(strip[first + key], high);
    return ABOUT.causal && key > query ? NaN : valueOf(bytes[row + cellOf(key, side)], high);
  });
}

function thumbnailsOf(held) {
  if (held.thumbs) return held.thumbs;
  const side = Math.min(THUMB, ABOUT.side);
  held.thumbs = { side, pixels: new Uint8Array(UNITS * side * side) };
  for (let unit = 0; unit < UNITS; unit++) {
    const map = mapOf(held, unit);
    held.thumbs.pixels.set(pooled(map.bytes, map.side, map.side, side, side), unit * side * side);
  }
  return held.thumbs;
}

// --- what is shown ---------------------------------------------------------------------------------------------------

const state = { setting: 0, partner: -1, ranking: "layer", ...ABOUT.opening, view: [] };
const shared = { tokens: ABOUT.tokens, query: state.query, dimmed: false };
const sides = [0, 1].map((at) => ({
  held: null,
  map: modelOf({ ...shared, frame: {}, view: [] }, (asked) => (asked.kind === MESSAGES.HOVER ? numbersAt(sides[at].held, asked) : null)),
  text: modelOf({ ...shared, frame: {}, evicted: [], mode: "query", can_evict: false, why_not: "" }),
}));
const atlas = modelOf({ frame: {}, order: [], scores: [], score_name: "", selected: state.unit, dimmed: false });
const losses = modelOf({ ...shared, frame: {} });
const at = (id) => document.getElementById(id);

function pooling(side) {
  const tokens = tokensIn(side);
  return tokens > 1 ? ` · the largest of ${tokens} × ${tokens} tokens, but for the first ${ABOUT.sinks} keys` : "";
}

function numbersAt(held, { query, key }) {
  const { side, bytes } = mapOf(held, state.unit);
  const isFirst = key < ABOUT.sinks;
  const byte = isFirst
    ? stripOf(held, state.unit)[cellOf(query, ABOUT.rows) * ABOUT.sinks + key]
    : bytes[cellOf(query, side) * side + cellOf(key, side)];
  if (!byte) return { hidden: true };
  const high = highOf(held, state.unit);
  const value = byte === 1 ? `at most ${number(10 ** ABOUT.low)}` : `${share(valueOf(byte, high))} ${within(high)}`;
  const most = isFirst || side === LENGTH ? "" : `largest of ${tokensIn(side)} × ${tokensIn(side)} tokens, `;
  return { words: `${most}probability ${value}` };
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
  const { side: cells, bytes } = withRows(mapOf(held, state.unit), ABOUT.rows);
  const whole = [0, LENGTH];
  const high = highOf(held, state.unit);
  const caption = `${ABOUT.labels[state.unit]} · ${held.name}`;
  const scale = { low: ABOUT.low, high, scale: "log", diverging: false, request: ++requests };
  const sinks = stripOf(held, state.unit).slice();
  side.map.put({
    pixels: bytes.buffer, sinks: sinks.buffer, query: state.query,
    frame: {
      ...scale, rows: ABOUT.rows, cols: cells, query: whole, key: whole, sinks: [0, ABOUT.sinks], length: LENGTH,
      unit: "log10 probability", caption: caption + pooling(cells), preview: "",
    },
  });
  side.text.put({
    values: rowOf(held, state.unit, state.query).buffer, query: state.query,
    frame: {
      ...scale, query: state.query, unit: "probability", within: within(high),
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
  const lines = (held, text, parent, tag) => {
    const line = element("p", "", parent);
    element(tag, "", line, `${held.name}: `);
    line.append(text);
  };
  at("said").replaceChildren();
  for (const side of sides) if (side.held) lines(side.held, side.held.said, at("said"), "b");
  at("continuation").replaceChildren();
  element("b", "", at("continuation"), "greedy continuation");
  for (const held of all) lines(held, held.continuation, at("continuation"), "i");
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
  [at("setting").value, at("partner").value, at("ranking").value] = [state.setting, state.partner, state.ranking];
  for (const side of sides) if (side.held) drawSide(side);
  drawOverview(sides[0]);
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
  for (const id of ["setting", "partner"]) at(id).addEventListener("change", () => choose(id)(Number(at(id).value)));
  at("ranking").addEventListener("change", () => choose("ranking")(at("ranking").value));
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
  const canvases = { atlas: [atlas, "atlas"], losses: [losses, "losses"] };
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
