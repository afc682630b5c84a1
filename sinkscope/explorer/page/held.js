// What the page holds of each setting, unpacked, and what the map, the strip and the rows make of it.

const ABOUT = JSON.parse(document.getElementById("about").textContent);
const LENGTH = ABOUT.tokens.length;
const UNITS = ABOUT.labels.length;
const THUMB = 64; // cells of a thumbnail along each side at most
const READINGS = new Map(); // promises of what was unpacked, by setting

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes that are told by their distance from those of the model as it is.
function restored(told, dense) {
  const bytes = new Uint8Array(told.length);
  for (let i = 0; i < told.length; i++) if (told[i]) bytes[i] = ((told[i] + dense[i] + 253) % 255) + 1;
  return bytes;
}

function reading(setting) {
  if (!READINGS.has(setting)) READINGS.set(setting, readSetting(setting));
  return READINGS.get(setting);
}

async function readSetting(setting) {
  const dense = setting ? await reading(0) : null;
  const names = ["maps", "fine", "numbers"].filter((name) => document.getElementById(`${name}-${setting}`));
  const parts = await Promise.all(names.map((name) => unpacked(`${name}-${setting}`)));
  const { maps, fine = new Uint8Array(), numbers } = Object.fromEntries(names.map((name, at) => [name, parts[at]]));
  const strips = numbers.subarray(0, UNITS * ABOUT.rows * ABOUT.sinks);
  const rest = numbers.slice(strips.length).buffer;
  const guesses = LENGTH * ABOUT.ranks;
  const found = dense
    ? { maps: restored(maps, dense.maps), fine: restored(fine, dense.fine), strips: restored(strips, dense.strips) }
    : { maps, fine, strips };
  return {
    ...ABOUT.settings[setting], ...found, setting,
    losses: new Float32Array(rest, 0, LENGTH),
    shares: new Float32Array(rest, 4 * LENGTH, guesses),
    ids: new Int32Array(rest, 4 * (LENGTH + guesses), guesses),
  };
}

// The map of a head as a whole square, and how many cells each side of it has.
function mapOf({ maps, fine }, unit, coarse = false) {
  const at = coarse ? -1 : ABOUT.fine.indexOf(unit);
  const side = at < 0 ? ABOUT.side : ABOUT.fine_side;
  const [bytes, place] = at < 0 ? [maps, unit] : [fine, at];
  const area = ABOUT.causal ? (side * (side + 1)) / 2 : side * side;
  const part = bytes.subarray(place * area, (place + 1) * area);
  if (!ABOUT.causal) return { side, bytes: part };
  const square = new Uint8Array(side * side);
  for (let row = 0, from = 0; row < side; row++, from += row) square.set(part.subarray(from, from + row + 1), row * side);
  return { side, bytes: square };
}

function stripOf({ strips }, unit) {
  const area = ABOUT.rows * ABOUT.sinks;
  return strips.subarray(unit * area, (unit + 1) * area);
}

// Every cell begins at a whole token.
function cellOf(token, side) {
  return Math.floor((token * side) / LENGTH);
}

function tokensIn(side) {
  return Math.ceil(LENGTH / side);
}

function highOf({ highs }, unit) {
  return highs[unit] ?? 0;
}

// The probability that a byte stands for; NaN where the key is not seen.
function valueOf(byte, high) {
  return byte ? 10 ** (ABOUT.low + ((byte - 1) / 254) * (high - ABOUT.low)) : NaN;
}

// By how much a probability may be off, half a step: "± 2.3%".
function within(high) {
  return `± ${number(100 * (10 ** ((high - ABOUT.low) / 508) - 1))}%`;
}

// What the map shows of a setting: one head, or several as one. `cell` and `first` give the probability of a cell of the
// map and of the strip by its place, NaN where the key is not seen.
function pictureOf(held) {
  const { unit, over } = state;
  const set = ABOUT.over[over]?.sets[ABOUT.over[over].of[unit]];
  if (set) return manyOf(held, `${over} ${ABOUT.over[over].of[unit]}`, set);
  const [{ side, bytes }, strip, high] = [mapOf(held, unit), stripOf(held, unit), highOf(held, unit)];
  const [cell, first] = [bytes, strip].map((from) => (place) => valueOf(from[place], high));
  return { side, bytes, strip, high, cell, first, name: ABOUT.labels[unit], said: "", within: within(high) };
}

// The mean or the largest over the heads of a set; the last one that was made is kept.
function manyOf(held, key, { name, said, members, mean }) {
  if (held.many?.key === key) return held.many;
  const area = (heads, bytesOfHead) => {
    const [total, seen] = [new Float32Array(bytesOfHead(heads[0]).length), new Uint8Array(bytesOfHead(heads[0]).length)];
    for (const head of heads) {
      const table = Float32Array.from({ length: 256 }, (_, byte) => (byte ? valueOf(byte, highOf(held, head)) : 0));
      bytesOfHead(head).forEach((byte, place) => {
        const value = table[byte];
        total[place] = mean ? total[place] + value / heads.length : Math.max(total[place], value);
        if (byte) seen[place] = 1;
      });
    }
    return total.map((value, place) => (seen[place] ? value : NaN));
  };
  const isFine = members.every((head) => ABOUT.fine.includes(head));
  const side = mapOf(held, members[0], !isFine).side;
  const values = area(members, (head) => mapOf(held, head, !isFine).bytes);
  const strips = area(members, (head) => stripOf(held, head));
  const high = Math.log10(Math.max(1, values.reduce((most, value) => (value > most ? value : most), 0)));
  const [bytes, strip] = [values, strips].map((all) => Uint8Array.from(all, (value) => byteOf(value, high)));
  const off = mean ? `${within(0)} or ${number(10 ** ABOUT.low)}` : within(0); // what is less counts as that much
  held.many = { key, side, bytes, strip, high, cell: (place) => values[place], first: (place) => strips[place], name, said, within: off };
  return held.many;
}

function byteOf(value, high) {
  if (Number.isNaN(value)) return 0;
  const place = (Math.log10(Math.max(value, 10 ** ABOUT.low)) - ABOUT.low) / (high - ABOUT.low);
  return Math.round(254 * clamp(place, 0, 1)) + 1;
}

// One query's row [token]: the first keys one by one, the others as fine as the map is.
function rowOf({ side, cell, first }, query) {
  const [row, strip] = [cellOf(query, side) * side, cellOf(query, ABOUT.rows) * ABOUT.sinks];
  return Float32Array.from({ length: LENGTH }, (_, key) => {
    if (key < ABOUT.sinks) return first(strip + key);
    return ABOUT.causal && key > query ? NaN : cell(row + cellOf(key, side));
  });
}

function thumbnailsOf(held) {
  if (held.thumbs) return held.thumbs;
  const side = Math.min(THUMB, ABOUT.side);
  held.thumbs = { side, pixels: new Uint8Array(UNITS * side * side) };
  for (let unit = 0; unit < UNITS; unit++) {
    const map = mapOf(held, unit);
    held.thumbs.pixels.set(pooled(map.bytes, map.side, map.side, side, side), unit * side * side);
  }
  return held.thumbs;
}
