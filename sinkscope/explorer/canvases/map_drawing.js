// Draws the map: the first keys as a strip of their own, the tile beside them, axes, the colour scale and the marks.

const MARGIN = { right: 12, top: 30 }; // css pixels; the colour scale is above the map
const PLAIN = 48; // css pixels at the left and below for positions,
const TEXTS = 124; // and for the texts of tokens too; the canvas as a whole keeps its size
const TOKEN_CELL = 12; // css pixels from which a row or column has room for its token's text
const SINK_CELL = 14; // css pixels that each key in the strip is wide, where there is room,
const NARROW = 420; // that is from this width on,
const BAND = 9; // css pixels for the spans along keys and queries, where there are some
const BAND_COLOURS = ["first", "second", "third", "fourth", "bar", "faint"];
const SINK_GAP = 8; // and between the strip and the map

function placed(map) {
  const view = viewOf(map);
  const width = Math.max(200, map.stage.clientWidth);
  const keys = map.model.get("frame").sinks ?? null;
  const cell = width < NARROW ? SINK_CELL / 2 : SINK_CELL;
  const strip = keys === null ? 0 : sinkColumns(map) * cell + SINK_GAP;
  const band = (map.model.get("frame").spans?.ranges ?? []).length ? BAND : 0;
  const whole = width - strip - MARGIN.right - band; // with the margin for what is written
  const tall = Math.min(Math.max(whole, 280), tallest() - MARGIN.top) - band;
  const fits = (low, stop, room) => (stop - low) * TOKEN_CELL <= room - TEXTS;
  const hasTexts = fits(view[0], view[1], tall) || fits(view[2], view[3], whole);
  const edge = hasTexts ? TEXTS : PLAIN;
  const [wide, high] = [whole - edge, tall - edge];
  const sinks = keys === null ? null : { x: edge, wide: strip - SINK_GAP, keys };
  const [x, y] = [edge + strip, MARGIN.top + band];
  return { x, y, wide, high, edge, hasTexts, width, sinks, band, height: y + high + edge };
}

function sinkColumns(map) {
  return bytesOf(map.model.get("sinks")).length / (map.model.get("frame").rows || 1);
}

function drawMap(map) {
  const frame = map.model.get("frame");
  const pixels = bytesOf(map.model.get("pixels"));
  const sinks = bytesOf(map.model.get("sinks"));
  if (!frame.rows || pixels.length !== frame.rows * frame.cols) return blank(map.canvas);
  const area = placed(map);
  const context = fitted(map.canvas, area.width, area.height);
  const theme = themeOf(map.root);
  const view = viewOf(map);
  const [dx, dy] = [area.wide / (view[3] - view[2]), area.high / (view[1] - view[0])];
  const scene = { map, frame, pixels, context, theme, area, view, dx, dy };
  context.font = `11px ${getComputedStyle(map.canvas).fontFamily}`;
  const ratio = window.devicePixelRatio || 1;
  drawTiles(scene, tilesOf(map, frame, pixels, sinks, Math.round(area.wide * ratio), Math.round(area.high * ratio)));
  drawQuery(scene);
  drawCell(scene);
  drawPointed(scene);
  drawBox(scene);
  drawAxis(scene, "query");
  drawAxis(scene, "key");
  if (area.sinks) drawSinkKeys(scene);
  if (area.band) drawBands(scene);
  drawColourScale(scene);
  describeMap(map, frame, view);
  writeSpans(map, frame);
  const { x, y, wide, high } = area;
  signed(map.canvas, { frame, pixels, sinks, view, area: { x, y, wide, high }, strip: area.sinks });
}

// Tile and strip as canvases of their own, at most as fine as the screen; kept until another frame or size comes.
function tilesOf(map, frame, pixels, sinks, across, down) {
  const kept = map.tiles;
  if (kept && kept.frame === frame && kept.across === across && kept.down === down) return kept;
  const table = frameTable(frame);
  const paint = (bytes, columns, canvas) => {
    const [rows, cols] = [Math.min(frame.rows, down), Math.min(columns, across)];
    [canvas.height, canvas.width] = [rows, cols];
    if (!cols) return canvas;
    const image = painted(pooled(bytes, frame.rows, columns, rows, cols, frame.farthest), rows, cols, table);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  };
  const made = (name) => kept?.[name] ?? document.createElement("canvas");
  const columns = sinks.length / frame.rows;
  const [tile, strip] = [paint(pixels, frame.cols, made("tile")), paint(sinks, columns, made("strip"))];
  map.tiles = { frame, across, down, tile, strip };
  return map.tiles;
}

function drawTiles({ frame, context, theme, area, view, dx, dy }, { tile, strip }) {
  const [y, high] = [area.y + (frame.query[0] - view[0]) * dy, (frame.query[1] - frame.query[0]) * dy];
  const part = (canvas, left, wide, x, across) => {
    context.save();
    context.beginPath();
    context.rect(left, area.y, wide, area.high);
    context.clip();
    context.imageSmoothingEnabled = false;
    if (canvas.width) context.drawImage(canvas, x, y, across, high);
    context.restore();
    context.strokeStyle = theme.line; // outside of the cells, whatever their colours
    context.lineWidth = 1;
    context.strokeRect(left - 0.5, area.y - 0.5, wide + 1, area.high + 1);
  };
  const x = area.x + (frame.key[0] - view[2]) * dx;
  part(tile, area.x, area.wide, x, (frame.key[1] - frame.key[0]) * dx);
  if (area.sinks) part(strip, area.sinks.x, area.sinks.wide, area.sinks.x, area.sinks.wide);
}

// The chosen query: a wedge in the margin, and lines that hide no cell of other rows. A high row has one above and one
// below; a low row is underlined only where it sees nothing.
function drawQuery({ map, frame, pixels, context, theme, area, view, dy }) {
  const query = map.model.get("query");
  if (query < view[0] || query >= view[1]) return;
  const [top, right] = [area.y + (query - view[0]) * dy, area.x + area.wide];
  casedLine(context, theme, 1, (path) => {
    const line = (from, to, y) => {
      path.moveTo(from, y);
      path.lineTo(Math.max(from, to), y);
    };
    if (dy < 9) return line(Math.max(area.x, lastSeen(frame, pixels, area, view, query) + 4), right, top + dy / 2);
    for (const y of [top, top + dy]) {
      line(area.x, right, y);
      if (area.sinks) line(area.sinks.x, area.sinks.x + area.sinks.wide, y);
    }
  });
  context.fillStyle = theme.accent;
  context.beginPath();
  context.moveTo(right + 1, top + dy / 2);
  context.lineTo(right + 9, top + dy / 2 - 5);
  context.lineTo(right + 9, top + dy / 2 + 5);
  context.fill();
}

// Where the cells end that a query sees, in css pixels.
function lastSeen(frame, pixels, area, view, query) {
  const [q0, q1] = frame.query;
  const row = clamp(Math.floor(((query - q0) / (q1 - q0)) * frame.rows), 0, frame.rows - 1);
  let column = frame.cols;
  while (column > 0 && !pixels[row * frame.cols + column - 1]) column--;
  const key = frame.key[0] + (column / frame.cols) * (frame.key[1] - frame.key[0]);
  return area.x + ((key - view[2]) / (view[3] - view[2])) * area.wide;
}

// The cell that is pointed at, in the map and in the strip.
function drawCell({ map, context, theme, area, view, dx, dy }) {
  const cell = map.hovered ?? map.linked;
  if (!cell || cell[0] < view[0] || cell[0] >= view[1]) return;
  const [query, key] = cell;
  const y = area.y + (query - view[0]) * dy;
  if (Math.min(dx, dy) >= 3 && key >= view[2] && key < view[3])
    casedLine(context, theme, 1, (path) => path.rect(area.x + (key - view[2]) * dx, y, dx, dy));
  const [low, stop] = area.sinks?.keys ?? [0, 0];
  if (dy < 3 || key < low || key >= stop) return;
  const wide = area.sinks.wide / (stop - low);
  casedLine(context, theme, 1, (path) => path.rect(area.sinks.x + (key - low) * wide, y, wide, dy));
}

// The row and the column of tokens that are pointed at in another picture.
function drawPointed({ map, context, theme, area, view, dx, dy }) {
  if (!map.pointed || map.linked) return;
  const { query, key } = map.pointed;
  const inside = (token, low, stop) => token !== undefined && token >= low && token < stop;
  casedLine(context, theme, 1, (path) => {
    if (inside(query, view[0], view[1])) {
      const y = area.y + (query - view[0] + 0.5) * dy;
      path.moveTo(area.sinks?.x ?? area.x, y);
      path.lineTo(area.x + area.wide, y);
    }
    if (inside(key, view[2], view[3])) {
      const x = area.x + (key - view[2] + 0.5) * dx;
      path.moveTo(x, area.y);
      path.lineTo(x, area.y + area.high);
    }
  });
}

// The part that a drag with shift would zoom into.
function drawBox({ map, context, theme, area, view, dx, dy }) {
  if (!map.drag?.isBox || !map.drag.now) return;
  const [q0, q1, k0, k1] = boxed(map.drag.cell, map.drag.now);
  const corner = [area.x + (k0 - view[2]) * dx, area.y + (q0 - view[0]) * dy];
  casedLine(context, theme, 1.5, (path) => path.rect(...corner, (k1 - k0) * dx, (q1 - q0) * dy));
}

// Positions and, where there is room, the texts of the tokens. Along the keys everything is turned by a quarter.
function drawAxis({ map, context, theme, area, view, dx, dy }, name) {
  const [low, high, cell, long] = name === "query" ? [view[0], view[1], dy, area.high] : [view[2], view[3], dx, area.wide];
  const withTexts = area.hasTexts && cell >= TOKEN_CELL;
  const all = Array.from({ length: high - low }, (_, i) => low + i);
  const marks = withTexts ? all : ticks(low, high - 1, long / 60, 1);
  const tokens = map.model.get("tokens");
  for (const position of marks) {
    const along = (position - low + 0.5) * cell;
    const text = withTexts ? (tokens[position] ?? "") : "";
    if (name === "query") drawMark(context, theme, area.edge, area.y + along, 0, position, text);
    else drawMark(context, theme, area.x + along, area.y + area.high, -Math.PI / 2, position, text);
  }
  context.save();
  context.fillStyle = theme.ink;
  context.textAlign = "center";
  if (name === "query") {
    context.translate(8, area.y + area.high / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("query (reading token)", 0, 0, area.high);
  } else context.fillText("key (seen token)", area.x + area.wide / 2, area.height - 8, area.wide);
  context.restore();
}

// A position at (x, y), with the text of its token if that is not empty.
function drawMark(context, theme, x, y, turn, position, token) {
  context.save();
  context.translate(x, y);
  context.rotate(turn);
  context.textBaseline = "middle";
  context.textAlign = "right";
  context.strokeStyle = theme.faint;
  context.beginPath();
  context.moveTo(-4, 0);
  context.lineTo(-1, 0);
  context.stroke();
  const text = String(position);
  context.fillStyle = theme.faint;
  context.fillText(text, -6, 0);
  context.fillStyle = theme.ink;
  if (token) context.fillText(visible(token), -10 - context.measureText(text).width, 0, TEXTS - 50);
  context.restore();
}

// Which keys stand in the strip, widened and always there.
function drawSinkKeys({ map, context, theme, area }) {
  const { x, wide, keys } = area.sinks;
  const step = wide / (keys[1] - keys[0]);
  const tokens = map.model.get("tokens");
  const every = Math.ceil(10 / step);
  for (let key = keys[0]; key < keys[1]; key += every) {
    const across = x + (key - keys[0] + 0.5) * step;
    drawMark(context, theme, across, area.y + area.high, -Math.PI / 2, key, area.hasTexts ? (tokens[key] ?? "") : "");
  }
  context.save();
  context.fillStyle = theme.ink;
  context.textAlign = "center";
  context.fillText(`first ${keys[1] - keys[0]}`, x + wide / 2, area.height - 8, wide + SINK_GAP);
  context.restore();
}

// The spans as bands: of the keys above the map, of the queries at its right.
function drawBands({ frame, context, theme, area, view, dx, dy }) {
  const ends = (start, stop, low, high, from, cell) => {
    const [first, last] = [Math.max(start, low), Math.min(stop, high)];
    return last > first ? [from + (first - low) * cell, (last - first) * cell] : null;
  };
  const thick = BAND - 4;
  const across = (part, y) => part && context.fillRect(part[0], y, Math.max(part[1] - (part[1] > 4 ? 1 : 0), 0.5), thick);
  for (const [place, start, stop] of frame.spans.ranges) {
    context.fillStyle = theme[BAND_COLOURS[place % BAND_COLOURS.length]];
    const [q0, q1, k0, k1] = view;
    across(ends(start, stop, k0, k1, area.x, dx), area.y - thick - 2);
    const { sinks } = area;
    if (sinks) across(ends(start, stop, ...sinks.keys, sinks.x, sinks.wide / (sinks.keys[1] - sinks.keys[0])), area.y - thick - 2);
    const rows = ends(start, stop, q0, q1, area.y, dy);
    if (rows) context.fillRect(area.x + area.wide + 12, rows[0], thick, Math.max(rows[1] - (rows[1] > 4 ? 1 : 0), 0.5));
  }
}

// The name of the span that a token is in; empty for none.
function spanOf({ spans }, token) {
  const found = (spans?.ranges ?? []).find(([, start, stop]) => start <= token && token < stop);
  return found ? spans.names[found[0]] : "";
}

// Which colour stands for which span, where these are few.
function writeSpans(map, frame) {
  const names = frame.spans?.names ?? [];
  const theme = themeOf(map.root);
  const many = names.length > 12;
  map.spans.hidden = !names.length;
  map.spans.replaceChildren();
  if (many) return void map.spans.append(`${names.length} spans, in turns of ${BAND_COLOURS.length} colours`);
  names.forEach((name, place) => {
    const entry = element("span", "sinkscope-span", map.spans);
    element("span", "sinkscope-swatch", entry).style.background = theme[BAND_COLOURS[place % BAND_COLOURS.length]];
    entry.append(visible(name, 40));
  });
}

function drawColourScale({ frame, context, theme, area }) {
  const unit = frame.unit ?? "";
  const left = area.sinks?.x ?? area.x;
  const room = area.x + area.wide - left - context.measureText(unit).width - 10;
  const [y, wide, high] = [13, clamp(room, 60, 240), 8];
  for (let i = 0; i < wide; i++) {
    const value = frame.low + ((i + 0.5) / wide) * (frame.high - frame.low);
    context.fillStyle = `rgb(${colourOf(value, frame).join(" ")})`;
    context.fillRect(left + i, y, 1.5, high);
  }
  context.strokeStyle = theme.line;
  context.strokeRect(left - 0.5, y - 0.5, wide + 1, high + 1);
  context.save();
  context.textBaseline = "middle";
  context.textAlign = "center";
  context.fillStyle = theme.ink;
  for (const value of ticks(frame.low, frame.high, wide / 40)) {
    const x = left + ((value - frame.low) / (frame.high - frame.low || 1)) * wide;
    context.fillText(number(value), clamp(x, left + 6, left + wide - 4), 6);
  }
  context.textAlign = "left";
  context.fillText(unit, left + wide + 8, y + high / 2);
  context.restore();
}
