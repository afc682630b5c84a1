// The text, its tokens shaded by the chosen query's attention, and the same row as bars.

const TEXT_HELP = "tokens of the text; Enter or a click acts, q chooses the query";
let textsMade = 0; // radio buttons of two views must not share a group

export default {
  render({ model, el }) {
    const life = lifetime();
    const start = { spans: [], focused: 0, values: new Float32Array(), reveal: true };
    const text = { model, life, root: el, ...start, ...buildText(el) };
    const redraw = onNextFrame(life, text.stage, () => drawText(text));
    life.follow(model, ["change:frame", "change:evicted"], redraw);
    life.follow(model, ["change:query"], () => {
      redraw();
      text.reveal = true;
    });
    life.follow(model, ["change:tokens"], () => {
      writeTokens(text);
      redraw();
    });
    life.follow(model, ["change:mode", "change:can_evict", "change:why_not"], () => showMode(text));
    life.follow(model, ["change:dimmed"], () => showStale(el, text.canvas, model.get("dimmed")));
    text.point = pointing(life, el, (tokens) => markPointed(text, tokens));
    followPage(life, text.stage, redraw);
    listenToTokens(text);
    listenToBars(text);
    writeTokens(text);
    showMode(text);
    showStale(el, text.canvas, model.get("dimmed"));
    redraw();
    return () => {
      life.end();
      el.classList.remove("sinkscope", "sinkscope-text");
    };
  },
};

function buildText(root) {
  root.classList.add("sinkscope", "sinkscope-text");
  const head = element("div", "sinkscope-line", root);
  const caption = element("span", "sinkscope-caption", head);
  const choices = element("fieldset", "sinkscope-choices", head);
  choices.setAttribute("aria-label", "what a click on a token does");
  element("span", "sinkscope-faint", choices, "click:");
  const group = `sinkscope-mode-${Date.now()}-${textsMade++}`;
  const modes = { query: radio(choices, group, "choose query"), evict: radio(choices, group, "evict / restore") };
  const stage = stageIn(root, "reading the text …");
  const canvas = element("canvas", "sinkscope-canvas", stage);
  canvas.setAttribute("role", "img");
  const tip = tipIn(stage);
  const box = element("div", "sinkscope-tokens", root);
  box.setAttribute("role", "listbox");
  const shades = element("div", "sinkscope-hint", root);
  const note = element("div", "sinkscope-hint", root);
  note.setAttribute("aria-live", "polite");
  return { caption, modes, stage, canvas, tip, box, shades, note };
}

function radio(parent, group, label) {
  const wrapper = element("label", "sinkscope-choice", parent);
  const input = element("input", "", wrapper);
  input.type = "radio";
  input.name = group;
  wrapper.append(` ${label}`);
  return input;
}

function showMode({ model, modes, note, box }) {
  const can = model.get("can_evict");
  box.setAttribute("aria-label", can ? `${TEXT_HELP}, e evicts or restores` : TEXT_HELP);
  modes.query.checked = model.get("mode") !== "evict";
  modes.evict.checked = model.get("mode") === "evict";
  modes.evict.disabled = !can;
  modes.evict.parentElement.title = can ? "a click evicts a token or gives it back" : model.get("why_not");
  note.textContent = can ? "Alt+click does the opposite (choose or evict) · keys: arrows, q, e" : model.get("why_not");
}

// Text from Python goes into textContent only: whatever it spells, it stays text.
function writeTokens(text) {
  const tokens = text.model.get("tokens");
  text.spans = tokens.map((token, place) => {
    const span = document.createElement("span");
    span.className = "sinkscope-token";
    const [, space, word] = running(token).match(/^(\s*)(.*)$/);
    span.append(space); // outside the outline and the shade, which would otherwise hang at the end of a line
    element("span", "sinkscope-word", span, word);
    span.dataset.place = place;
    span.setAttribute("role", "option");
    span.setAttribute("data-lm-suppress-shortcuts", "true");
    span.tabIndex = -1;
    return span;
  });
  const breaks = (place) => (tokens[place].endsWith("\n") ? [document.createElement("br")] : []);
  text.box.replaceChildren(...text.spans.flatMap((span, place) => [span, ...breaks(place)]));
  text.focused = clamp(text.focused, 0, Math.max(0, tokens.length - 1));
  if (text.spans.length) text.spans[text.focused].tabIndex = 0;
}

function drawText(text) {
  const { model, root, spans } = text;
  const frame = model.get("frame");
  const values = floatsOf(model.get("values"));
  text.values = values;
  text.caption.textContent = frame.caption ?? "";
  const isThere = frame.request !== undefined && values.length === spans.length;
  if (!isThere || !values.length) return blank(text.canvas);
  const { paper, shade } = themeOf(root);
  const query = model.get("query");
  const evicted = new Set(model.get("evicted"));
  const colours = shadesOf(paper, shade);
  const { least, most, levels } = shadeOf(frame, values);
  const write = writerOf(frame);
  const floor = frame.scale === "log" ? `the even share ${write(least)} or less` : write(least);
  text.shades.textContent = most > -Infinity ? `shade: from ${floor} to the row's largest, ${write(most)}` : "";
  spans.forEach((span, place) => {
    const level = levels[place];
    const unseen = Number.isNaN(level);
    const [background, ink] = unseen || level < 0.025 ? ["", ""] : colours[Math.round(level * 20)];
    Object.assign(span.lastChild.style, { background, color: ink });
    span.classList.toggle("sinkscope-not-seen", unseen);
    span.classList.toggle("sinkscope-evicted", evicted.has(place));
    span.classList.toggle("sinkscope-query", place === query);
    span.setAttribute("aria-selected", String(place === query));
    span.title = labelOfToken(text, place, evicted);
    span.setAttribute("aria-label", span.title);
  });
  drawBars(text, frame, values);
  if (text.reveal && spans[query]) scrollInside(text.box, spans[query].offsetTop, spans[query].offsetHeight);
  text.reveal = false;
  signed(text.canvas, { frame, values, query, evicted: [...evicted] });
}

// 21 steps from the background to the shade, each with the ink that can be read on it.
function shadesOf(paper, shade) {
  const [from, to] = [opaque(paper), opaque(shade)];
  return Array.from({ length: 21 }, (_, i) => {
    const mixed = from.map((part, at) => Math.round(part + ((to[at] - part) * i) / 20));
    return [`rgb(${mixed.join(" ")})`, luminance(mixed) > 0.179 ? "#000" : "#fff"]; // where both stand out alike
  });
}

// Of a colour, as the contrast of text is reckoned: 0 is black, 1 white.
function luminance(colour) {
  const [red, green, blue] = colour.map((part) => {
    const value = part / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

// Any css colour as three numbers: the canvas knows all the ways to write one.
function opaque(colour) {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  return [red, green, blue];
}

function labelOfToken(text, place, evicted = new Set(text.model.get("evicted"))) {
  const value = text.values[place];
  const frame = text.model.get("frame");
  const token = visible(text.model.get("tokens")[place] ?? "", 40);
  const exact = `${quantityOf(frame)} ${writerOf(frame)(value)}`;
  const said = Number.isNaN(value) ? "not seen by this query" : exact;
  return `token ${place} "${token}": ${said}${evicted.has(place) ? ", evicted" : ""}`;
}

function chooseToken({ model }, place) {
  model.set("query", place);
  model.save_changes();
}

function evictOrRestore({ model, note }, place) {
  if (!model.get("can_evict")) return void (note.textContent = model.get("why_not"));
  const others = model.get("evicted").filter((other) => other !== place);
  const isEvicted = others.length < model.get("evicted").length;
  model.set("evicted", isEvicted ? others : [...others, place].sort((a, b) => a - b));
  model.save_changes();
}

// What a click or Enter does; with Alt, the other of the two.
function act(text, place, other) {
  const evicts = (text.model.get("mode") === "evict") !== other;
  (evicts ? evictOrRestore : chooseToken)(text, place);
}

function placeUnder(event) {
  const span = event.target.closest?.(".sinkscope-token");
  return span ? Number(span.dataset.place) : null;
}

function listenToTokens(text) {
  const { life, box, modes, model } = text;
  life.on(box, "click", (event) => {
    const place = placeUnder(event);
    if (place === null) return;
    focusToken(text, place);
    act(text, place, event.altKey);
  });
  life.on(box, "pointerover", (event) => text.point(placeUnder(event) === null ? null : { key: placeUnder(event) }));
  life.on(box, "pointerleave", () => text.point(null));
  keepKeys(life, box, (event) => pressTokenKey(text, event));
  listenToCopies(life, text.model, text.root, box);
  for (const [mode, input] of Object.entries(modes)) {
    keepKeys(life, input, () => false);
    life.on(input, "change", () => {
      model.set("mode", mode);
      model.save_changes();
    });
  }
}

// Tokens that are pointed at in another picture.
function markPointed(text, tokens) {
  for (const [name, place] of [["query", tokens?.query], ["key", tokens?.key]]) {
    const className = `sinkscope-pointed-${name}`;
    text.box.querySelector(`.${className}`)?.classList.remove(className);
    text.spans[place]?.classList.add(className);
  }
}

function pressTokenKey(text, event) {
  const place = placeUnder(event) ?? text.focused;
  const moves = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: text.spans.length - 1 };
  if (event.key in moves) focusToken(text, moves[event.key]);
  else if (event.key === "ArrowUp") focusToken(text, beside(text, place, -1));
  else if (event.key === "ArrowDown") focusToken(text, beside(text, place, 1));
  else if (event.key === "Enter") act(text, place, event.altKey);
  else if (event.key === "e") evictOrRestore(text, place);
  else if (event.key === "q") chooseToken(text, place);
  else return false;
  return true;
}

// One token is in the tab order; the arrow keys move which one.
function focusToken(text, place) {
  const span = text.spans[place];
  if (!span) return;
  text.spans[text.focused].tabIndex = -1;
  text.focused = place;
  span.tabIndex = 0;
  span.focus({ preventScroll: true });
  scrollInside(text.box, span.offsetTop, span.offsetHeight);
}

// The token nearest below or above, one line on.
function beside({ spans }, place, direction) {
  const here = spans[place];
  let [best, nearest, row] = [place, Infinity, null];
  for (let at = place + direction; spans[at]; at += direction) {
    const { offsetTop, offsetLeft } = spans[at];
    if (offsetTop === here.offsetTop) continue;
    if (row !== null && offsetTop !== row) break;
    const away = Math.abs(offsetLeft - here.offsetLeft);
    if (away < nearest) [best, nearest] = [at, away];
    row = offsetTop;
  }
  return best;
}
