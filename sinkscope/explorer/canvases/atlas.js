// All heads at once: one canvas of thumbnails.

const ATLAS_GAP = 2;
const ATLAS_EDGE = { left: 24, top: 15 }; // css pixels for the numbers of layers and heads
const THUMB_COLOURS = frameTable({ low: 0, high: 1 });

export default {
  render({ model, el }) {
    const life = lifetime();
    const atlas = { model, life, root: el, hovered: -1, thumbs: null, ...buildAtlas(el) };
    const redraw = onNextFrame(life, atlas.box, () => drawAtlas(atlas));
    atlas.redraw = redraw;
    life.follow(model, ["change:frame", "change:order", "change:scores", "change:score_name"], redraw);
    life.follow(model, ["change:selected"], () => {
      revealSelected(atlas);
      redraw();
    });
    life.follow(model, ["change:dimmed"], () => showStale(el, atlas.canvas, model.get("dimmed")));
    followPage(life, atlas.box, redraw);
    keepKeys(life, atlas.canvas, (event) => moveSelection(atlas, event));
    listenToCopies(life, model, el, atlas.canvas);
    listenToPointer(atlas);
    showStale(el, atlas.canvas, model.get("dimmed"));
    redraw();
    return () => {
      life.end();
      el.classList.remove("sinkscope", "sinkscope-atlas");
    };
  },
};

function buildAtlas(root) {
  root.classList.add("sinkscope", "sinkscope-atlas");
  const head = element("div", "sinkscope-line", root);
  const caption = element("span", "sinkscope-caption", head);
  const status = element("span", "sinkscope-status", head);
  status.setAttribute("aria-live", "polite");
  const stage = stageIn(root, "measuring all heads …");
  const box = element("div", "sinkscope-scroll", stage);
  const canvas = element("canvas", "sinkscope-canvas", box);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "grid of attention heads");
  const tip = tipIn(stage);
  const legend = element("div", "sinkscope-hint", root);
  const order = element("span", "", legend);
  const scale = element("span", "sinkscope-legend", legend, "1e−5");
  element("span", "sinkscope-gradient", scale).style.background = gradientOf(VIRIDIS);
  scale.append("1, log scale");
  legend.hidden = true;
  return { caption, status, stage, box, canvas, tip, legend, order };
}

function labelOf(atlas, unit) {
  const label = (atlas.model.get("frame").labels ?? [])[unit] ?? "no head";
  const score = atlas.model.get("scores")[unit];
  return score === undefined ? label : `${label}: ${atlas.model.get("score_name")} ${share(score)}`;
}

// With the lines above and below it is as high as the map is with its own.
function atlasHeight() {
  return tallest() - 56;
}

function gridOf(atlas) {
  const order = atlas.model.get("order");
  const columns = Math.max(1, atlas.model.get("frame").columns || 1);
  const rows = Math.max(1, Math.ceil(order.length / columns));
  const wide = clamp(Math.floor((atlas.box.clientWidth - ATLAS_EDGE.left) / columns), 10, 40);
  const high = clamp(Math.floor((atlasHeight() - ATLAS_EDGE.top) / rows), Math.min(12, wide), wide);
  return { order, columns, rows, wide, high };
}

// The layer of each row and the head of each column, where all units there share it; null elsewhere.
function sharedNumbers({ order, columns, rows }, places) {
  const shared = (units, part) => {
    const [first, ...others] = units.map((unit) => places[unit]?.[part]);
    return first !== undefined && others.every((other) => other === first) ? first : null;
  };
  const lines = Array.from({ length: rows }, (_, row) => order.slice(row * columns, (row + 1) * columns));
  return {
    layers: lines.map((units) => shared(units, 0)),
    heads: Array.from({ length: columns }, (_, at) => shared(lines.flatMap((units) => units.slice(at, at + 1)), 1)),
  };
}

function drawAtlas(atlas) {
  const frame = atlas.model.get("frame");
  const pixels = bytesOf(atlas.model.get("pixels"));
  if (!frame.side || pixels.length !== frame.labels.length * frame.side ** 2) return blank(atlas.canvas);
  const grid = gridOf(atlas);
  atlas.box.style.maxHeight = `${atlasHeight() + 2}px`;
  const width = ATLAS_EDGE.left + grid.columns * grid.wide;
  const context = fitted(atlas.canvas, width, ATLAS_EDGE.top + grid.rows * grid.high);
  const scale = atlas.canvas.width / width;
  const [across, down] = [grid.wide, grid.high].map((size) => Math.max(1, Math.round((size - ATLAS_GAP) * scale)));
  const thumbs = thumbsOf(atlas, frame, pixels, across, down);
  grid.order.forEach((unit, place) => {
    const corner = cornerOf(grid, place);
    context.putImageData(thumbs[unit], ...corner.map((edge) => Math.round((edge + ATLAS_GAP / 2) * scale)));
  });
  drawNumbers(atlas, context, grid, frame);
  drawMarks(atlas, context, grid);
  describeAtlas(atlas, frame);
  const corner = { x: ATLAS_EDGE.left, y: ATLAS_EDGE.top, wide: grid.wide, high: grid.high };
  signed(atlas.canvas, { frame, pixels, order: grid.order, columns: grid.columns, cells: corner });
}

// The thumbnails in the size of the screen; kept until other pixels or another size are wanted.
function thumbsOf(atlas, frame, pixels, across, down) {
  const kept = atlas.thumbs;
  if (kept && kept.frame === frame && kept.across === across && kept.down === down) return kept.images;
  const area = frame.side ** 2;
  const images = frame.labels.map((_, unit) => {
    const thumb = pooled(pixels.subarray(unit * area, (unit + 1) * area), frame.side, frame.side, down, across);
    return painted(thumb, down, across, THUMB_COLOURS);
  });
  atlas.thumbs = { frame, across, down, images };
  return images;
}

function cornerOf(grid, place) {
  const [column, row] = [place % grid.columns, Math.floor(place / grid.columns)];
  return [ATLAS_EDGE.left + column * grid.wide, ATLAS_EDGE.top + row * grid.high];
}

// Layers down the left and heads along the top; in another order, the rank of the first head of each row.
function drawNumbers(atlas, context, grid, frame) {
  const { layers, heads } = sharedNumbers(grid, frame.places ?? []);
  const areLayers = layers.every((layer) => layer !== null);
  context.font = `10px ${getComputedStyle(atlas.canvas).fontFamily}`;
  context.fillStyle = themeOf(atlas.root).faint;
  context.textBaseline = "middle";
  context.textAlign = "right";
  const everyRow = Math.ceil(11 / grid.high);
  for (let row = 0; row < grid.rows; row += everyRow) {
    const text = String(areLayers ? layers[row] : row * grid.columns + 1);
    context.fillText(text, ATLAS_EDGE.left - 4, ATLAS_EDGE.top + (row + 0.5) * grid.high, ATLAS_EDGE.left - 4);
  }
  context.textAlign = "center";
  const everyColumn = Math.ceil(15 / grid.wide);
  heads.forEach((head, at) => {
    if (head === null || at % everyColumn) return;
    context.fillText(String(head), ATLAS_EDGE.left + (at + 0.5) * grid.wide, ATLAS_EDGE.top / 2);
  });
  atlas.legend.hidden = false;
  atlas.order.textContent = areLayers ? "layers down, heads across" : "row by row in the order chosen, numbered by rank";
}

function drawMarks(atlas, context, grid) {
  const theme = themeOf(atlas.root);
  const outline = (unit, width) => {
    const place = grid.order.indexOf(unit);
    if (place < 0) return;
    const [x, y] = cornerOf(grid, place);
    const inset = width / 2 + 1;
    const [across, down] = [grid.wide - 2 * inset, grid.high - 2 * inset];
    casedLine(context, theme, width, (path) => path.rect(x + inset, y + inset, across, down));
  };
  if (atlas.hovered >= 0) outline(atlas.hovered, 1);
  outline(atlas.model.get("selected"), 2);
}

function describeAtlas(atlas, frame) {
  const text = labelOf(atlas, atlas.model.get("selected"));
  atlas.caption.textContent = frame.caption ?? "";
  if (atlas.status.textContent !== text) atlas.status.textContent = text;
  const where = `${frame.labels.length} attention heads, ${frame.caption ?? ""}`;
  atlas.canvas.setAttribute("aria-label", `${where}. Selected: ${text}. Arrow keys, Home and End select another head.`);
}

function select(atlas, unit) {
  if (unit === undefined || unit === atlas.model.get("selected")) return;
  atlas.model.set("selected", unit);
  atlas.model.save_changes();
}

function moveSelection(atlas, event) {
  const { order, columns } = gridOf(atlas);
  const place = order.indexOf(atlas.model.get("selected"));
  const last = order.length - 1;
  const moves = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: last };
  Object.assign(moves, { ArrowDown: place + columns, ArrowUp: place - columns });
  if (!(event.key in moves)) return false;
  const next = place < 0 ? 0 : moves[event.key];
  if (next >= 0 && next <= last) select(atlas, order[next]);
  return true;
}

function unitAt(atlas, event) {
  const grid = gridOf(atlas);
  const [x, y] = pointIn(atlas.canvas, event);
  const column = Math.floor((x - ATLAS_EDGE.left) / grid.wide);
  const row = Math.floor((y - ATLAS_EDGE.top) / grid.high);
  return column < 0 || column >= grid.columns || row < 0 ? undefined : grid.order[row * grid.columns + column];
}

function listenToPointer(atlas) {
  const { life, canvas, tip, stage } = atlas;
  life.on(canvas, "click", (event) => {
    canvas.focus({ preventScroll: true });
    select(atlas, unitAt(atlas, event));
  });
  life.on(canvas, "pointermove", (event) => {
    const unit = unitAt(atlas, event) ?? -1;
    if (unit !== atlas.hovered) atlas.redraw();
    atlas.hovered = unit;
    if (unit < 0) tip.hidden = true;
    else showTip(stage, tip, ...pointIn(stage, event), [labelOf(atlas, unit)]);
  });
  life.on(canvas, "pointerleave", () => {
    atlas.hovered = -1;
    tip.hidden = true;
    atlas.redraw();
  });
}

// Only the box scrolls, never the page.
function revealSelected(atlas) {
  const grid = gridOf(atlas);
  const place = grid.order.indexOf(atlas.model.get("selected"));
  if (place >= 0) scrollInside(atlas.box, cornerOf(grid, place)[1], grid.high, 0);
}
