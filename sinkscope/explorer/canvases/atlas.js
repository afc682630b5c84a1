// All heads at once: one canvas of thumbnails.

const ATLAS_GAP = 2;
const ATLAS_HEIGHT = 380;
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
  const stage = element("div", "sinkscope-stage", root);
  const box = element("div", "sinkscope-scroll", stage);
  const canvas = element("canvas", "sinkscope-canvas", box);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "grid of attention heads");
  const tip = element("div", "sinkscope-tip", stage);
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  return { caption, status, stage, box, canvas, tip };
}

function labelOf(atlas, unit) {
  const label = (atlas.model.get("frame").labels ?? [])[unit] ?? "no head";
  const score = atlas.model.get("scores")[unit];
  return score === undefined ? label : `${label}: ${atlas.model.get("score_name")} ${number(score)}`;
}

function gridOf(atlas) {
  const order = atlas.model.get("order");
  const columns = Math.max(1, atlas.model.get("frame").columns || 1);
  const rows = Math.max(1, Math.ceil(order.length / columns));
  const cell = clamp(Math.floor(Math.min(atlas.box.clientWidth / columns, ATLAS_HEIGHT / rows)), 20, 40);
  return { order, columns, rows, cell };
}

function drawAtlas(atlas) {
  const frame = atlas.model.get("frame");
  const pixels = bytesOf(atlas.model.get("pixels"));
  if (!frame.side || pixels.length !== frame.labels.length * frame.side ** 2) return blank(atlas.canvas);
  const grid = gridOf(atlas);
  const context = fitted(atlas.canvas, grid.columns * grid.cell, grid.rows * grid.cell);
  const scale = atlas.canvas.width / (grid.columns * grid.cell);
  const thumbs = thumbsOf(atlas, frame, pixels, Math.max(1, Math.round((grid.cell - ATLAS_GAP) * scale)));
  grid.order.forEach((unit, place) => {
    const [x, y] = cornerOf(grid, place);
    context.putImageData(thumbs[unit], ...[x, y].map((edge) => Math.round((edge + ATLAS_GAP / 2) * scale)));
  });
  drawMarks(atlas, context, grid);
  describeAtlas(atlas, frame);
  signed(atlas.canvas, { frame, pixels, order: grid.order, cell: grid.cell, columns: grid.columns });
}

// The thumbnails in the size of the screen; kept until other pixels or another size are wanted.
function thumbsOf(atlas, frame, pixels, size) {
  const kept = atlas.thumbs;
  if (kept && kept.frame === frame && kept.size === size) return kept.images;
  const area = frame.side ** 2;
  const images = frame.labels.map((_, unit) => {
    const thumb = pooled(pixels.subarray(unit * area, (unit + 1) * area), frame.side, frame.side, size, size);
    return painted(thumb, size, size, THUMB_COLOURS);
  });
  atlas.thumbs = { frame, size, images };
  return images;
}

function cornerOf(grid, place) {
  return [(place % grid.columns) * grid.cell, Math.floor(place / grid.columns) * grid.cell];
}

function drawMarks(atlas, context, grid) {
  const theme = themeOf(atlas.root);
  const outline = (unit, width) => {
    const place = grid.order.indexOf(unit);
    if (place < 0) return;
    const [x, y] = cornerOf(grid, place);
    const inset = width / 2 + 1;
    const size = grid.cell - 2 * inset;
    casedLine(context, theme, width, (path) => path.rect(x + inset, y + inset, size, size));
  };
  if (atlas.hovered >= 0) outline(atlas.hovered, 1);
  outline(atlas.model.get("selected"), 2.5);
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
  const column = Math.floor(x / grid.cell);
  if (column < 0 || column >= grid.columns || y < 0) return undefined;
  return grid.order[Math.floor(y / grid.cell) * grid.columns + column];
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
  if (place >= 0) scrollInside(atlas.box, cornerOf(grid, place)[1], grid.cell, 0);
}
