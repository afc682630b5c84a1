// Two columns of tokens, reading ones at the left and seen ones at the right, and a line for each weight between them.

const LINE_ROW = 15; // css pixels that a token is high
const LINE_HEAD = { top: 8, text: 150 }; // and that the texts at each side are wide, where there is room
const LINE_FAINTEST = 0.02; // weights below are not drawn
const LINE_COLOURS = ["first", "second", "third", "fourth", "bar", "accent"];

export default {
  render({ model, el }) {
    const life = lifetime();
    el.classList.add("sinkscope", "sinkscope-lines");
    const lines = { model, life, root: el, hovered: null, linked: null, ...buildLines(el) };
    lines.redraw = onNextFrame(life, lines.stage, () => drawLines(lines));
    lines.point = pointing(life, el, (tokens) => {
      lines.linked = tokens;
      lines.redraw();
    });
    life.follow(model, ["change:frame", "change:query"], lines.redraw);
    life.follow(model, ["change:dimmed"], () => showStale(el, lines.canvas, model.get("dimmed")));
    followPage(life, lines.stage, lines.redraw);
    keepKeys(life, lines.canvas, (event) => moveLine(lines, event));
    listenToLines(lines);
    showStale(el, lines.canvas, model.get("dimmed"));
    lines.redraw();
    return () => {
      life.end();
      el.classList.remove("sinkscope", "sinkscope-lines");
    };
  },
};

function buildLines(root) {
  const head = element("div", "sinkscope-line", root);
  const caption = element("span", "sinkscope-caption", head);
  const heads = element("fieldset", "sinkscope-choices", head);
  heads.setAttribute("aria-label", "heads whose lines are drawn");
  const stage = stageIn(root, "lines between tokens come with the first reading …");
  const canvas = element("canvas", "sinkscope-canvas", stage);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "lines between tokens");
  const tip = tipIn(stage);
  element("div", "sinkscope-hint", root, `lines from ${LINE_FAINTEST} on, the stronger the wider · point at a token for its lines alone · click chooses the query · up and down move it`);
  return { caption, heads, stage, canvas, tip };
}

// Weights [head, query, key] of the heads that are drawn, and their numbers among those of the frame.
function weightsOf({ model }) {
  const { tokens = [], units = [] } = model.get("frame");
  const all = floatsOf(model.get("values"));
  const area = tokens.length ** 2;
  if (!area || all.length !== units.length * area) return [];
  const chosen = new Set(model.get("heads"));
  return units.flatMap((unit, at) => (chosen.has(unit) ? [{ at, unit, weights: all.subarray(at * area, (at + 1) * area) }] : []));
}

function linesArea(lines, many) {
  const width = Math.max(200, lines.stage.clientWidth);
  const side = Math.min(LINE_HEAD.text, width * 0.34);
  return { width, side, height: LINE_HEAD.top * 2 + many * LINE_ROW, left: side, right: width - side };
}

function rowOfLine(place) {
  return LINE_HEAD.top + (place + 0.5) * LINE_ROW;
}

function drawLines(lines) {
  const { model, root, canvas } = lines;
  const frame = model.get("frame");
  const { tokens = [] } = frame;
  writeHeads(lines, frame);
  lines.caption.textContent = frame.caption ?? "";
  const drawn = weightsOf(lines);
  if (!tokens.length || !floatsOf(model.get("values")).length) return blank(canvas);
  const area = linesArea(lines, tokens.length);
  const context = fitted(canvas, area.width, area.height);
  const theme = themeOf(root);
  const only = lines.hovered ?? placesIn(frame, lines.linked);
  drawn.forEach(({ at, weights }) => {
    context.strokeStyle = theme[LINE_COLOURS[at % LINE_COLOURS.length]];
    for (let q = 0; q < tokens.length; q++)
      for (let k = 0; k < tokens.length; k++) {
        const weight = weights[q * tokens.length + k];
        if (!(weight >= LINE_FAINTEST) || (only && !(only.query === q || only.key === k))) continue;
        context.globalAlpha = Math.min(1, 0.12 + weight);
        context.lineWidth = 0.5 + 3 * Math.min(weight, 1);
        context.beginPath();
        context.moveTo(area.left, rowOfLine(q));
        context.lineTo(area.right, rowOfLine(k));
        context.stroke();
      }
  });
  context.globalAlpha = 1;
  drawTexts({ lines, frame, context, theme, area, only });
  canvas.setAttribute("aria-label", `Lines between ${tokens.length} tokens, ${frame.caption ?? ""}. Up and down choose the query.`);
  signed(canvas, { frame, values: drawn.map(({ weights }) => weights), heads: drawn.map(({ unit }) => unit), area });
}

// The texts of the tokens, reading ones at the left and seen ones at the right; a rule where tokens are left out.
function drawTexts({ lines, frame, context, theme, area, only }) {
  const query = lines.model.get("query");
  context.font = `11px ${getComputedStyle(lines.canvas).fontFamily}`;
  context.textBaseline = "middle";
  frame.tokens.forEach((token, place) => {
    const y = rowOfLine(place);
    const text = `${frame.places[place]} ${visible(token, 20)}`;
    for (const [x, align, isOne] of [[area.left - 6, "right", only?.query === place], [area.right + 6, "left", only?.key === place]]) {
      context.fillStyle = isOne || (align === "right" && frame.places[place] === query) ? theme.accent : theme.ink;
      context.textAlign = align;
      context.fillText(text, x, y, area.side - 10);
    }
    if (place && frame.places[place] > frame.places[place - 1] + 1) {
      context.fillStyle = theme.line;
      context.fillRect(0, y - LINE_ROW / 2, area.width, 1);
    }
  });
}

// Where tokens of the text stand in the columns.
function placesIn(frame, tokens) {
  const place = (token) => (token === undefined ? -1 : (frame.places ?? []).indexOf(token));
  const found = tokens && { query: place(tokens.query), key: place(tokens.key) };
  return found && (found.query >= 0 || found.key >= 0) ? found : null;
}

// A box for each head, in the colour of its lines.
function writeHeads(lines, { units = [], labels = [] }) {
  const { model, heads, root } = lines;
  const chosen = new Set(model.get("heads"));
  const told = JSON.stringify([units, labels]);
  if (heads.dataset.told !== told) {
    heads.dataset.told = told;
    heads.replaceChildren(...units.map((unit, at) => {
      const label = document.createElement("label");
      label.className = "sinkscope-choice";
      const box = element("input", "", label);
      box.type = "checkbox";
      box.addEventListener("keydown", (event) => event.stopPropagation());
      box.addEventListener("change", () => {
        const others = model.get("heads").filter((other) => other !== unit);
        model.set("heads", box.checked ? [...others, unit].sort((a, b) => a - b) : others);
        model.save_changes();
        lines.redraw();
      });
      element("span", "sinkscope-swatch", label).dataset.at = at;
      label.append(labels[at]);
      return label;
    }));
  }
  const theme = themeOf(root);
  [...heads.children].forEach((label, at) => {
    label.firstChild.checked = chosen.has(units[at]);
    label.children[1].style.background = theme[LINE_COLOURS[at % LINE_COLOURS.length]];
  });
}

function lineAt(lines, event) {
  const { tokens = [] } = lines.model.get("frame");
  const [x, y] = pointIn(lines.canvas, event);
  const place = Math.floor((y - LINE_HEAD.top) / LINE_ROW);
  if (place < 0 || place >= tokens.length) return null;
  const { width } = linesArea(lines, tokens.length);
  return x < width / 2 ? { query: place } : { key: place };
}

function chooseLine(lines, place) {
  const { places = [] } = lines.model.get("frame");
  if (places[place] === undefined) return;
  lines.model.set("query", places[place]);
  lines.model.save_changes();
}

function moveLine(lines, event) {
  const moves = { ArrowUp: -1, ArrowDown: 1 };
  if (!(event.key in moves)) return false;
  chooseLine(lines, (lines.model.get("frame").places ?? []).indexOf(lines.model.get("query")) + moves[event.key]);
  return true;
}

function listenToLines(lines) {
  const { life, canvas, tip, stage, model } = lines;
  const point = (at) => {
    const { places = [], tokens = [] } = model.get("frame");
    lines.hovered = at;
    lines.point(at && { query: places[at.query], key: places[at.key] });
    tip.hidden = !at;
    lines.redraw();
    return at && [places, tokens, at.query ?? at.key];
  };
  life.on(canvas, "pointermove", (event) => {
    const found = point(lineAt(lines, event));
    if (!found) return;
    const [places, tokens, place] = found;
    showTip(stage, tip, ...pointIn(stage, event), [`token ${places[place]} ${visible(tokens[place], 40)}`, ...strongest(lines)]);
  });
  life.on(canvas, "pointerleave", () => point(null));
  life.on(canvas, "click", (event) => {
    const at = lineAt(lines, event);
    if (at) chooseLine(lines, at.query ?? at.key);
  });
}

// Of each head drawn, the strongest line of the token that is pointed at.
function strongest(lines) {
  const { tokens, places, labels } = lines.model.get("frame");
  const { query, key } = lines.hovered;
  return weightsOf(lines).map(({ at, weights }) => {
    const all = tokens.map((_, other) => weights[query === undefined ? other * tokens.length + key : query * tokens.length + other]);
    const best = all.reduce((most, value, other) => (value > (all[most] ?? -1) ? other : most), -1);
    const way = query === undefined ? "most from" : "most to";
    return best < 0 ? `${labels[at]}: none` : `${labels[at]}: ${way} ${places[best]} ${visible(tokens[best])}, ${share(all[best])}`;
  });
}
