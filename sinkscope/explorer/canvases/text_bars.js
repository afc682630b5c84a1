// The chosen query's row: as a place in [0, 1] of each value on the frame's scale, and as bars over all keys.

const BARS = { left: 44, right: 8, top: 6, bottom: 16, height: 92 };

// The unit of the raw values; the scale may still be that of their logarithm.
function quantityOf(frame) {
  return (frame.unit ?? "value").replace("log10 ", "");
}

// How strongly each token is shaded, in [0, 1], NaN where it is not seen. The scale of the bars squeezes most of a row
// into a few shades; this one begins at the even share and ends at the row's largest, so that they differ.
function shadeOf(frame, values) {
  const seen = values.filter((value) => !Number.isNaN(value));
  const most = seen.reduce((best, value) => Math.max(best, value), -Infinity);
  const isLogit = frame.unit === "logit";
  const least = isLogit ? seen.reduce((best, value) => Math.min(best, value), Infinity) : evenShare(seen, frame);
  const along = frame.scale === "log" ? (value) => Math.log(Math.max(value, 1e-45) / least) : (value) => value - least;
  const whole = Math.max(along(most), 1e-9); // an even row has no shades
  return { least, most, levels: values.map((value) => (Number.isNaN(value) ? NaN : clamp(along(value) / whole, 0, 1))) };
}

function evenShare(seen, { scale }) {
  return scale === "log" ? seen.reduce((sum, value) => sum + value, 0) / Math.max(seen.length, 1) : 0;
}

function writerOf(frame) {
  const write = frame.unit === "probability" ? share : number;
  if (!frame.within) return write;
  const least = 10 ** frame.low * 1.001; // of single precision; whatever is less stands there too
  return (value) => (value <= least ? `at most ${write(value)}` : `${write(value)} ${frame.within}`);
}

// The place between low and high, or NaN where the key is not seen.
function placeOf(value, { scale, low, high }) {
  if (Number.isNaN(value)) return NaN;
  const shown = scale === "log" ? Math.log10(Math.max(value, 1e-45)) : value;
  return clamp((shown - low) / (high - low || 1), 0, 1);
}

// Where bars start: at zero if the scale has both signs, else at its low end.
function baseOf({ scale, low, high }) {
  return scale !== "log" && low < 0 && high > 0 ? -low / (high - low) : 0;
}

function barsArea(text) {
  const width = Math.max(160, text.stage.clientWidth);
  return { width, inner: width - BARS.left - BARS.right, depth: BARS.height - BARS.top - BARS.bottom };
}

function drawBars(text, frame, values) {
  const { width, inner, depth } = barsArea(text);
  const context = fitted(text.canvas, width, BARS.height);
  const theme = themeOf(text.root);
  const scene = { text, frame, values, context, theme, inner, depth, step: inner / values.length };
  context.font = `11px ${getComputedStyle(text.canvas).fontFamily}`;
  context.textBaseline = "middle";
  drawUnseen(scene);
  drawColumns(scene);
  drawScale(scene);
  drawPositions(scene);
  drawEvicted(scene);
  text.canvas.setAttribute("aria-label", describeBars(text, frame, values));
}

// Wide bars leave a gap between each other.
function breadth(step, least) {
  return Math.max(step - (step > 3 ? 1 : 0), least);
}

// Keys that this query does not see get a grey floor, so that "nothing there" differs from "a small value".
function drawUnseen({ values, context, theme, step, depth }) {
  context.fillStyle = theme.line;
  const wide = breadth(step, 0.5);
  values.forEach((value, key) => {
    if (Number.isNaN(value)) context.fillRect(BARS.left + key * step, BARS.top + depth - 3, wide, 3);
  });
}

// More keys than pixels: the largest of each pixel is drawn, as in the map.
function drawColumns({ frame, values, context, theme, step, depth }) {
  const base = baseOf(frame);
  const highest = new Map();
  values.forEach((value, key) => {
    const place = placeOf(value, frame);
    const x = step >= 1 ? key * step : Math.floor(key * step);
    const before = highest.get(x) ?? base;
    if (Math.abs(place - base) >= Math.abs(before - base)) highest.set(x, place);
  });
  context.fillStyle = theme.bar;
  const wide = breadth(step, 1);
  for (const [x, place] of highest) {
    const high = Math.abs(place - base) * depth;
    if (high) context.fillRect(BARS.left + x, BARS.top + (1 - Math.max(base, place)) * depth, wide, Math.max(high, 1));
  }
}

function drawScale({ frame, context, theme, inner, depth }) {
  context.strokeStyle = theme.line;
  context.lineWidth = 1;
  context.strokeRect(BARS.left - 0.5, BARS.top - 0.5, inner + 1, depth + 1);
  context.textAlign = "right";
  context.fillStyle = theme.ink;
  for (const value of ticks(frame.low, frame.high, 3)) {
    const y = BARS.top + (1 - (value - frame.low) / (frame.high - frame.low || 1)) * depth;
    const text = frame.scale === "log" ? number(10 ** value) : number(value);
    context.fillText(text, BARS.left - 5, clamp(y, BARS.top + 4, BARS.top + depth - 2));
  }
}

function drawPositions({ frame, values, context, theme, inner, depth, step }) {
  context.textAlign = "center";
  context.fillStyle = theme.faint;
  const floor = BARS.top + depth;
  for (const position of ticks(0, values.length - 1, inner / 70, 1)) {
    const x = BARS.left + (position + 0.5) * step;
    context.fillText(String(position), Math.min(x, BARS.left + inner - 8), floor + 10);
  }
  const x = BARS.left + (frame.query + 0.5) * step;
  context.fillStyle = theme.accent;
  context.beginPath();
  context.moveTo(x, floor);
  context.lineTo(x - 5, floor + 8);
  context.lineTo(x + 5, floor + 8);
  context.fill();
}

function drawEvicted({ text, context, theme, step, depth }) {
  context.textAlign = "center";
  context.fillStyle = theme.ink;
  const y = BARS.top + depth - 6;
  for (const key of text.model.get("evicted")) context.fillText("✕", BARS.left + (key + 0.5) * step, y);
}

function describeBars(text, frame, values) {
  const tokens = text.model.get("tokens");
  const named = (place) => `token ${place} "${visible(tokens[place] ?? "")}"`;
  let largest = -1;
  values.forEach((value, key) => {
    if (!Number.isNaN(value) && (largest < 0 || value > values[largest])) largest = key;
  });
  const peak = largest < 0 ? "no key is seen" : `largest ${writerOf(frame)(values[largest])} at ${named(largest)}`;
  const keys = `${quantityOf(frame)} of ${values.length} keys for query ${named(frame.query)}`;
  return `${frame.caption ?? ""}: ${keys}, ${peak}`;
}

function listenToBars(text) {
  const { life, canvas, stage, tip } = text;
  life.on(canvas, "pointermove", (event) => {
    const { inner } = barsArea(text);
    const values = text.values;
    const key = Math.floor(((pointIn(canvas, event)[0] - BARS.left) / inner) * values.length);
    const isKey = key >= 0 && key < values.length;
    text.point(isKey ? { key } : null);
    if (!isKey) return void (tip.hidden = true);
    showTip(stage, tip, ...pointIn(stage, event), [labelOfToken(text, key)]);
  });
  life.on(canvas, "pointerleave", () => {
    text.point(null);
    tip.hidden = true;
  });
}
