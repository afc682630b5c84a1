// Colour tables. They are interpolated here from a few published stops, so that nothing has to be fetched.

const VIRIDIS = [
  "#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
]; // matplotlib's, at every ninth
const BLUE_RED = [
  "#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7",
  "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f",
]; // ColorBrewer's RdBu, low values first

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// The colour at `place` in [0, 1] along the stops.
function between(stops, place) {
  const at = clamp(place, 0, 1) * (stops.length - 1);
  const left = Math.min(Math.floor(at), stops.length - 2);
  const [from, to] = [rgb(stops[left]), rgb(stops[left + 1])];
  return from.map((part, i) => Math.round(part + (to[i] - part) * (at - left)));
}

// 256 RGBA colours as one Uint32Array, the form in which a whole image is painted fastest.
function tableOf(colourAt) {
  const bytes = new Uint8ClampedArray(256 * 4);
  for (let i = 0; i < 256; i++) bytes.set(colourAt(i), 4 * i);
  return new Uint32Array(bytes.buffer);
}

// The colour of a value between the frame's low and high. A diverging table is centred on zero, whatever the limits,
// so that the sign of a logit can be read off.
function colourOf(value, { low, high, diverging }) {
  if (!diverging) return between(VIRIDIS, (value - low) / (high - low || 1));
  const reach = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return between(BLUE_RED, 0.5 + value / (2 * reach));
}

// The colour scale as a css background, from low at the left to high at the right.
function gradientOf(stops) {
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

// Entries 1 to 255 run from low to high; entry 0, a hidden cell, lets the background through.
function frameTable(frame) {
  const step = (frame.high - frame.low) / 254;
  return tableOf((i) => (i === 0 ? [0, 0, 0, 0] : [...colourOf(frame.low + (i - 1) * step, frame), 255]));
}

// [rows, cols] bytes to [outRows, outCols]. Smaller takes the largest of each block, so that a sink one column wide
// survives, or of differences the `farthest` from their middle; larger repeats.
function pooled(bytes, rows, cols, outRows, outCols, farthest = false) {
  if (rows === outRows && cols === outCols) return bytes;
  const out = new Uint8Array(outRows * outCols);
  for (let y = 0; y < outRows; y++) {
    const [top, bottom] = block(y, rows, outRows);
    for (let x = 0; x < outCols; x++) {
      const [left, right] = block(x, cols, outCols);
      let largest = 0;
      for (let row = top; row < bottom; row++)
        for (let at = row * cols + left; at < row * cols + right; at++)
          if (farthest ? isFarther(bytes[at], largest) : bytes[at] > largest) largest = bytes[at];
      out[y * outCols + x] = largest;
    }
  }
  return out;
}

// Byte 128 is no difference, byte 0 no cell.
function isFarther(byte, than) {
  return byte !== 0 && (than === 0 || Math.abs(byte - 128) > Math.abs(than - 128));
}

function block(place, size, outSize) {
  const from = Math.floor((place * size) / outSize);
  return [from, Math.max(from + 1, Math.ceil(((place + 1) * size) / outSize))];
}

function painted(bytes, rows, cols, table) {
  const image = new ImageData(cols, rows);
  const out = new Uint32Array(image.data.buffer);
  for (let i = 0; i < out.length; i++) out[i] = table[bytes[i]];
  return image;
}
