// How tokens and numbers are written.

const MARKS = { " ": "␣", "\n": "↵", "\r": "\\r", "\t": "⇥", "\u00a0": "⍽" };

// Control and direction characters would hide, or turn round, the text beside them.
// oxlint-disable-next-line no-control-regex
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

// A token on one line, whitespace made visible, at most `most` characters.
function visible(token, most = 12) {
  const marked = token.replace(/[ \n\r\t\u00a0]/g, (space) => MARKS[space]).replace(UNSEEN, "�");
  const characters = Array.from(marked);
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : marked;
}

// The same inside a running text: spaces stay spaces, unless they are all there is.
function running(token) {
  if (token === "") return "∅";
  if (/^[ \u00a0]+$/.test(token)) return visible(token, 60);
  return visible(token, 60).replaceAll(MARKS[" "], " ");
}

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (value === 0) return "0";
  const isPlain = size >= 1e-3 && size < 1e5;
  const text = isPlain ? String(Number(value.toPrecision(3))) : value.toExponential(1).replace(".0", "");
  return text.replace("-", "−");
}

// A share of a whole. One that three digits would round to 1 is told by what it lacks: 1 − 2e-6.
function share(value) {
  if (!(value >= 0.9995 && value < 1)) return number(value);
  return `1 − ${(1 - value).toExponential(1).replace(".0", "").replace("-", "−")}`;
}

// Round steps of 1, 2 or 5 between low and high, about `many` of them.
function ticks(low, high, many, smallest = 0) {
  const rough = (high - low) / Math.max(many, 1);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(smallest, power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    found.push(Number((i * step).toPrecision(10))); // without the noise of floats
  return found;
}
