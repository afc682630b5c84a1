// The loss of every token under one or more settings: points for single tokens, lines for their running means.

export default {
  render({ model, el }) {
    const life = lifetime();
    const chart = { model, life, root: el, hovered: -1, linked: -1, ...buildChart(el) };
    chart.redraw = onNextFrame(life, chart.stage, () => drawChart(chart));
    chart.tell = pointing(life, el, (tokens) => {
      chart.linked = tokens?.query ?? tokens?.key ?? -1;
      chart.redraw();
    });
    life.follow(model, ["change:frame", "change:query"], chart.redraw);
    life.follow(model, ["change:dimmed"], () => showStale(el, chart.canvas, model.get("dimmed")));
    followPage(life, chart.stage, chart.redraw);
    keepKeys(life, chart.canvas, (event) => moveQuery(chart, event));
    listenToChart(chart);
    showStale(el, chart.canvas, model.get("dimmed"));
    chart.redraw();
    return () => {
      life.end();
      el.classList.remove("sinkscope", "sinkscope-losses");
    };
  },
};

function buildChart(root) {
  root.classList.add("sinkscope", "sinkscope-losses");
  const head = element("div", "sinkscope-line", root);
  element("span", "sinkscope-caption", head, "loss of each token");
  const legend = element("span", "sinkscope-curves", head);
  const stage = stageIn(root, "the losses come with the first reading …");
  const canvas = element("canvas", "sinkscope-canvas", stage);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "chart of losses");
  return { legend, stage, canvas, tip: tipIn(stage) };
}

// One array [token] for each curve, NaN where a token was not scored.
function curvesOf({ model }) {
  const all = floatsOf(model.get("values"));
  const { names = [], length = 0 } = model.get("frame");
  if (!length || all.length !== names.length * length) return [];
  return names.map((name, at) => ({ name, values: all.subarray(at * length, (at + 1) * length), ...CURVES[at % 4] }));
}

// The mean of each scored token and those scored right before it, `width` in all; NaN where a token was not scored.
function runningMeans(values, width) {
  const last = [];
  return Array.from(values, (value) => {
    if (Number.isNaN(value)) return NaN;
    last.push(value);
    if (last.length > width) last.shift();
    return last.reduce((sum, each) => sum + each, 0) / last.length;
  });
}

function chartArea(chart, length) {
  const width = Math.max(160, chart.stage.clientWidth);
  const height = clamp(Math.round(tallest() * 0.4), 150, 300);
  const [wide, high] = [width - CHART.left - CHART.right, height - CHART.top - CHART.bottom];
  return { width, height, wide, high, step: wide / Math.max(length, 1) };
}

function drawChart(chart) {
  const frame = chart.model.get("frame");
  const curves = curvesOf(chart);
  if (!curves.length) return blank(chart.canvas);
  const area = chartArea(chart, frame.length);
  const context = fitted(chart.canvas, area.width, area.height);
  const theme = themeOf(chart.root);
  const most = curves.reduce((best, { values }) => values.reduce((a, b) => (b > a ? b : a), best), 0);
  const scene = { chart, frame, curves, context, theme, area, high: most * 1.04 || 1 };
  context.font = `11px ${getComputedStyle(chart.canvas).fontFamily}`;
  drawChartAxes(scene);
  const means = curves.map(({ values }) => runningMeans(values, frame.smooth));
  curves.forEach((curve) => drawPoints(scene, curve));
  curves.forEach((curve, at) => drawMean(scene, curve, means[at]));
  drawPlaces(scene);
  writeLegend(chart, theme, curves);
  const told = means.map((mean, at) => `${curves[at].name} ends at a mean of ${number(mean.findLast((each) => each >= 0))}`);
  const keys = "Left and right arrows choose the query.";
  chart.canvas.setAttribute("aria-label", `Loss in nats of ${frame.length} tokens: ${told.join(", ")}. ${keys}`);
  signed(chart.canvas, { frame, values: curves.map(({ values }) => values), means });
}

function pointOf({ area, high }, token, value) {
  return [CHART.left + (token + 0.5) * area.step, CHART.top + (1 - value / high) * area.high];
}

function drawChartAxes(scene) {
  const { frame, context, theme, area, high } = scene;
  context.lineWidth = 1;
  context.fillStyle = theme.ink;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const value of ticks(0, high, area.high / 32)) {
    const y = Math.round(pointOf(scene, 0, value)[1]) + 0.5;
    context.strokeStyle = theme.line;
    context.globalAlpha = 0.5;
    context.strokeRect(CHART.left, y, area.wide, 0);
    context.globalAlpha = 1;
    context.fillText(number(value), CHART.left - 5, y);
  }
  context.textAlign = "center";
  for (const token of ticks(0, frame.length - 1, area.wide / 70, 1)) {
    const x = CHART.left + (token + 0.5) * area.step;
    context.fillText(String(token), clamp(x, CHART.left + 4, area.width - 14), CHART.top + area.high + 9);
  }
  context.fillText("token", CHART.left + area.wide / 2, area.height - 6);
  context.save();
  context.translate(7, CHART.top + area.high / 2);
  context.rotate(-Math.PI / 2);
  context.fillText("loss (nats)", 0, 0, area.high + 20);
  context.restore();
}

function drawPoints(scene, { values, colour }) {
  const { context, theme } = scene;
  context.fillStyle = theme[colour];
  context.globalAlpha = 0.4;
  values.forEach((value, token) => {
    if (Number.isNaN(value)) return;
    const [x, y] = pointOf(scene, token, value);
    context.fillRect(x - 1, y - 1, 2, 2);
  });
  context.globalAlpha = 1;
}

function drawMean(scene, { colour, dash }, mean) {
  const { context, theme } = scene;
  context.strokeStyle = theme[colour];
  context.lineWidth = 2;
  context.setLineDash(dash);
  context.beginPath();
  mean.forEach((value, token) => {
    if (!Number.isNaN(value)) context.lineTo(...pointOf(scene, token, value));
  });
  context.stroke();
  context.setLineDash([]);
}

// The chosen query, and the token that is pointed at.
function drawPlaces(scene) {
  const { chart, frame, context, theme, area } = scene;
  for (const [token, width] of [[chart.model.get("query"), 1.5], [chart.hovered, 1], [chart.linked, 1]]) {
    if (token < 0 || token >= frame.length) continue;
    const [x] = pointOf(scene, token, 0);
    casedLine(context, theme, width, (path) => {
      path.moveTo(x, CHART.top);
      path.lineTo(x, CHART.top + area.high);
    });
  }
}

function tokenAt(chart, event) {
  const { length = 0 } = chart.model.get("frame");
  const token = Math.floor((pointIn(chart.canvas, event)[0] - CHART.left) / chartArea(chart, length).step);
  return token >= 0 && token < length ? token : -1;
}

function chooseQueryOf(chart, query) {
  chart.model.set("query", clamp(query, 0, (chart.model.get("frame").length ?? 1) - 1));
  chart.model.save_changes();
}

function moveQuery(chart, event) {
  const moves = { ArrowLeft: -1, ArrowRight: 1 };
  if (!(event.key in moves)) return false;
  chooseQueryOf(chart, chart.model.get("query") + moves[event.key]);
  return true;
}

function listenToChart(chart) {
  const { life, canvas, stage, tip, model } = chart;
  const point = (token) => {
    if (token !== chart.hovered) chart.redraw();
    chart.hovered = token;
    chart.tell(token < 0 ? null : { query: token });
    tip.hidden = token < 0;
  };
  life.on(canvas, "pointermove", (event) => {
    const token = tokenAt(chart, event);
    point(token);
    if (token < 0) return;
    const losses = curvesOf(chart).map(({ name, values }) => `${name}: ${number(values[token])}`);
    const text = visible(model.get("tokens")[token] ?? "", 40);
    showTip(stage, tip, ...pointIn(stage, event), [`token ${token} "${text}", nats`, ...losses]);
  });
  life.on(canvas, "pointerleave", () => point(-1));
  life.on(canvas, "click", (event) => {
    const token = tokenAt(chart, event);
    if (token >= 0) chooseQueryOf(chart, token);
  });
}
