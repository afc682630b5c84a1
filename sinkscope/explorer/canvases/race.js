// The perplexity of two policies along a long text, while it is read.

const RACE_HIGH = 300; // css pixels
const RACE_EMPTY = { low: 1, high: 100, tokens: 1024 }; // what the axes show before anything is read

export default {
  render({ model, el }) {
    const life = lifetime();
    const race = { model, life, root: el, hovered: -1, ...buildRace(el) };
    race.redraw = onNextFrame(life, race.stage, () => drawRace(race));
    life.follow(model, ["change:frame"], race.redraw);
    followPage(life, race.stage, race.redraw);
    listenToRace(race);
    race.redraw();
    return () => {
      life.end();
      el.classList.remove("sinkscope", "sinkscope-race");
    };
  },
};

function buildRace(root) {
  root.classList.add("sinkscope", "sinkscope-race");
  const head = element("div", "sinkscope-line", root);
  element("span", "sinkscope-caption", head, "perplexity as the text is read");
  const legend = element("span", "sinkscope-curves", head);
  const stage = element("div", "sinkscope-stage", root);
  const canvas = element("canvas", "sinkscope-canvas", stage);
  canvas.setAttribute("role", "img");
  return { legend, stage, canvas, tip: tipIn(stage) };
}

// The ends of both axes: perplexity from one power of ten to another, or closer where less than that is crossed.
function raceEnds({ curves, length }) {
  const values = curves.flatMap(({ y }) => y).filter((value) => value > 0 && Number.isFinite(value));
  const tokens = Math.min(length, Math.max(RACE_EMPTY.tokens, ...curves.flatMap(({ x }) => x)));
  if (!values.length) return { ...RACE_EMPTY, tokens };
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return { low: low / 1.3, high: Math.max(high * 1.3, (low / 1.3) * 4), tokens };
}

// 1, 2 and 5 times each power of ten; the powers alone where there are many.
function powers(low, high) {
  const steps = high / low > 1000 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const step of steps) if (step * 10 ** power >= low && step * 10 ** power <= high) found.push(step * 10 ** power);
  return found;
}

function drawRace(race) {
  const frame = race.model.get("frame");
  if (!frame.curves) return blank(race.canvas);
  const width = Math.max(160, race.stage.clientWidth);
  const context = fitted(race.canvas, width, RACE_HIGH);
  const [wide, high] = [width - CHART.left - CHART.right, RACE_HIGH - CHART.top - CHART.bottom];
  const ends = raceEnds(frame);
  const place = {
    x: (tokens) => CHART.left + (tokens / ends.tokens) * wide,
    y: (value) => CHART.top + (1 - Math.log(value / ends.low) / Math.log(ends.high / ends.low)) * high,
  };
  const scene = { race, frame, context, theme: themeOf(race.root), ends, place, wide, high, width };
  context.font = `11px ${getComputedStyle(race.canvas).fontFamily}`;
  drawRaceAxes(scene);
  const curves = frame.curves.map((curve, at) => ({ ...curve, ...CURVES[at % CURVES.length] }));
  for (const curve of curves) drawRunner(scene, curve);
  writeLegend(race, scene.theme, curves);
  const told = curves.map(({ name, x, y }) => `${name} ${number(y.at(-1))} after ${x.at(-1) ?? 0} tokens`);
  const said = told.length ? told.join(", ") : "nothing is read yet";
  race.canvas.setAttribute("aria-label", `Perplexity of the last ${frame.recent} tokens, logarithmic: ${said}.`);
  race.scene = scene;
  signed(race.canvas, { frame, ends });
}

function drawRaceAxes(scene) {
  const { frame, context, theme, ends, place, wide, high } = scene;
  context.lineWidth = 1;
  context.fillStyle = theme.ink;
  context.strokeStyle = theme.line;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const value of powers(ends.low, ends.high)) {
    const y = Math.round(place.y(value)) + 0.5;
    context.globalAlpha = 0.5;
    context.strokeRect(CHART.left, y, wide, 0);
    context.globalAlpha = 1;
    context.fillText(number(value), CHART.left - 5, y);
  }
  context.textAlign = "center";
  const bottom = CHART.top + high;
  for (const tokens of ticks(0, ends.tokens, wide / 90, 1))
    context.fillText(tokens.toLocaleString("en"), clamp(place.x(tokens), CHART.left + 4, scene.width - 16), bottom + 9);
  context.fillText("tokens read; dotted: the cache is full", CHART.left + wide / 2, RACE_HIGH - 6, wide);
  context.setLineDash([2, 3]);
  context.strokeStyle = theme.ink;
  for (const mark of frame.marks.filter((each) => each <= ends.tokens)) {
    context.strokeRect(Math.round(place.x(mark)) + 0.5, CHART.top, 0, high);
  }
  context.setLineDash([]);
  context.save();
  context.translate(7, CHART.top + high / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(`perplexity, last ${frame.recent} tokens (log)`, 0, 0, high);
  context.restore();
}

// A line, and while there are few values each of them as a point: the first one would not be seen otherwise.
function drawRunner({ context, theme, place }, { x, y, colour, dash }) {
  context.strokeStyle = context.fillStyle = theme[colour];
  context.lineWidth = 2;
  context.setLineDash(dash);
  context.beginPath();
  x.forEach((tokens, at) => context.lineTo(place.x(tokens), place.y(y[at])));
  context.stroke();
  context.setLineDash([]);
  if (x.length > 40) return;
  x.forEach((tokens, at) => {
    context.beginPath();
    context.arc(place.x(tokens), place.y(y[at]), 3, 0, 2 * Math.PI);
    context.fill();
  });
}

// What each policy had at the place that is pointed at.
function listenToRace(race) {
  const { life, canvas, stage, tip } = race;
  life.on(canvas, "pointermove", (event) => {
    const { frame, wide, ends } = race.scene ?? {};
    const [x, y] = pointIn(canvas, event);
    const tokens = ((x - CHART.left) / wide) * ends?.tokens;
    const lines = (frame?.curves ?? []).map((curve) => {
      const at = curve.x.findIndex((end) => end >= tokens);
      return at < 0 ? null : `${curve.name}: ${number(curve.y[at])} after ${curve.x[at].toLocaleString("en")} tokens`;
    }).filter(Boolean);
    if (lines.length && tokens >= 0) showTip(stage, tip, x, y, lines);
    else tip.hidden = true;
  });
  life.on(canvas, "pointerleave", () => {
    tip.hidden = true;
  });
}
