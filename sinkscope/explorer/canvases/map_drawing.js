// Draws the map: the tile, its axes, its colour bar and the marks on it.

const MARGIN = { right: 74, top: 6 };
const PLAIN = 52; // css pixels at the left and below for positions,
const TEXTS = 124; // and for the texts of tokens too; the canvas as a whole keeps its size
const TOKEN_CELL = 12; // css pixels from which a row or column has room for its token's text

function placed(map) {
  const view = viewOf(map);
  const width = Math.max(260, map.stage.clientWidth);
  const room = width - TEXTS - MARGIN.right;
  const hasTexts = Math.min(view[1] - view[0], view[3] - view[2]) * TOKEN_CELL <= room;
  const edge = hasTexts ? TEXTS : PLAIN;
  const side = width - edge - MARGIN.right;
  return { x: edge, y: MARGIN.top, side, edge, hasTexts, width, height: MARGIN.top + side + edge };
}

function drawMap(map) {
  const frame = map.model.get("frame");
  const pixels = bytesOf(map.model.get("pixels"));
  if (!frame.rows || pixels.length !== frame.rows * frame.cols) return blank(map.canvas);
  const area = placed(map);
  const context = fitted(map.canvas, area.width, area.height);
  const theme = themeOf(map.root);
  const view = viewOf(map);
  const [dx, dy] = [area.side / (view[3] - view[2]), area.side / (view[1] - view[0])];
  const scene = { map, frame, context, theme, area, view, dx, dy };
  context.font = `11px ${getComputedStyle(map.canvas).fontFamily}`;
  drawTile(scene, tileOf(map, frame, pixels, Math.round(area.side * (window.devicePixelRatio || 1))));
  drawQuery(scene);
  drawCell(scene);
  drawBox(scene);
  drawAxis(scene, "query");
  drawAxis(scene, "key");
  drawColourBar(scene);
  map.ribbon.style.right = `${MARGIN.right}px`;
  map.ribbon.style.maxWidth = `${area.side}px`;
  describeMap(map, frame, view);
  signed(map.canvas, { frame, pixels, view, area: { x: area.x, y: area.y, side: area.side } });
}

// The tile as a canvas of its own, at most as fine as the screen; kept until another frame or size comes.
function tileOf(map, frame, pixels, most) {
  const kept = map.tile;
  if (kept && kept.frame === frame && kept.most === most) return kept.canvas;
  const [rows, cols] = [Math.min(frame.rows, most), Math.min(frame.cols, most)];
  const canvas = kept?.canvas ?? document.createElement("canvas");
  [canvas.height, canvas.width] = [rows, cols];
  const image = painted(pooled(pixels, frame.rows, frame.cols, rows, cols), rows, cols, frameTable(frame));
  canvas.getContext("2d").putImageData(image, 0, 0);
  map.tile = { frame, most, canvas };
  return canvas;
}

function drawTile({ frame, context, theme, area, view, dx, dy }, tile) {
  context.save();
  context.beginPath();
  context.rect(area.x, area.y, area.side, area.side);
  context.clip();
  context.imageSmoothingEnabled = false;
  const [x, y] = [area.x + (frame.key[0] - view[2]) * dx, area.y + (frame.query[0] - view[0]) * dy];
  context.drawImage(tile, x, y, (frame.key[1] - frame.key[0]) * dx, (frame.query[1] - frame.query[0]) * dy);
  context.restore();
  context.strokeStyle = theme.line;
  context.lineWidth = 1;
  context.strokeRect(area.x - 0.5, area.y - 0.5, area.side + 1, area.side + 1);
}

// The chosen query: a wedge in the margin and thin lines above and below its row; a low row has only the one below.
function drawQuery({ map, context, theme, area, view, dy }) {
  const query = map.model.get("query");
  if (query < view[0] || query >= view[1]) return;
  const top = area.y + (query - view[0]) * dy;
  const lines = dy >= 9 ? [top, top + dy] : [top + dy + 1];
  casedLine(context, theme, 1, (path) => {
    for (const y of lines) {
      path.moveTo(area.x, y);
      path.lineTo(area.x + area.side, y);
    }
  });
  context.fillStyle = theme.accent;
  context.beginPath();
  context.moveTo(area.x + area.side + 1, top + dy / 2);
  context.lineTo(area.x + area.side + 8, top + dy / 2 - 5);
  context.lineTo(area.x + area.side + 8, top + dy / 2 + 5);
  context.fill();
}

function drawCell({ map, context, theme, area, view, dx, dy }) {
  if (!map.hovered || Math.min(dx, dy) < 3) return;
  const [query, key] = map.hovered;
  const corner = [area.x + (key - view[2]) * dx, area.y + (query - view[0]) * dy];
  casedLine(context, theme, 1, (path) => path.rect(...corner, dx, dy));
}

// The part that a drag with shift would zoom into.
function drawBox({ map, context, theme, area, view, dx, dy }) {
  if (!map.drag?.isBox || !map.drag.now) return;
  const [q0, q1, k0, k1] = boxed(map.drag.cell, map.drag.now);
  const corner = [area.x + (k0 - view[2]) * dx, area.y + (q0 - view[0]) * dy];
  casedLine(context, theme, 1.5, (path) => path.rect(...corner, (k1 - k0) * dx, (q1 - q0) * dy));
}

// Positions and, where there is room, the texts of the tokens. Along the keys everything is turned by a quarter.
function drawAxis(scene, name) {
  const { map, context, theme, area, view, dx, dy } = scene;
  const [low, high, cell] = name === "query" ? [view[0], view[1], dy] : [view[2], view[3], dx];
  const withTexts = area.hasTexts && cell >= TOKEN_CELL;
  const all = Array.from({ length: high - low }, (_, i) => low + i);
  const marks = withTexts ? all : ticks(low, high - 1, area.side / 60, 1);
  const tokens = map.model.get("tokens");
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const position of marks) {
    const along = (position - low + 0.5) * cell;
    context.save();
    if (name === "query") context.translate(area.x, area.y + along);
    else {
      context.translate(area.x + along, area.y + area.side);
      context.rotate(-Math.PI / 2);
    }
    drawMark(context, theme, position, withTexts ? (tokens[position] ?? "") : "");
    context.restore();
  }
  drawAxisLabel(scene, name);
}

function drawMark(context, theme, position, token) {
  context.strokeStyle = theme.faint;
  context.beginPath();
  context.moveTo(-4, 0);
  context.lineTo(-1, 0);
  context.stroke();
  const text = String(position);
  context.fillStyle = theme.faint;
  context.fillText(text, -6, 0);
  if (!token) return;
  context.fillStyle = theme.ink;
  context.fillText(visible(token), -10 - context.measureText(text).width, 0, TEXTS - 50);
}

function drawAxisLabel({ context, theme, area }, name) {
  context.save();
  context.fillStyle = theme.ink;
  context.textAlign = "center";
  const middleOf = area.side / 2;
  if (name === "query") {
    context.translate(8, area.y + middleOf);
    context.rotate(-Math.PI / 2);
    context.fillText("query (reading token)", 0, 0);
  } else context.fillText("key (seen token)", area.x + middleOf, area.height - 8);
  context.restore();
}

function drawColourBar({ frame, context, theme, area }) {
  const [x, width, height] = [area.x + area.side + 14, 12, Math.min(area.side, 260)];
  for (let i = 0; i < height; i++) {
    const value = frame.high - ((i + 0.5) / height) * (frame.high - frame.low);
    context.fillStyle = `rgb(${colourOf(value, frame).join(" ")})`;
    context.fillRect(x, area.y + i, width, 1.5);
  }
  context.strokeStyle = theme.line;
  context.strokeRect(x - 0.5, area.y - 0.5, width + 1, height + 1);
  context.textAlign = "left";
  context.fillStyle = theme.ink;
  for (const value of ticks(frame.low, frame.high, 5)) {
    const y = area.y + ((frame.high - value) / (frame.high - frame.low || 1)) * height;
    context.fillText(number(value), x + width + 4, clamp(y, area.y + 6, area.y + height - 5));
  }
  context.save();
  context.translate(area.width - 7, area.y + height / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText(frame.unit ?? "", 0, 0);
  context.restore();
}
