// C on a canvas of the page: the table of what it shows, as CSV. Everything is taken from what the canvas was given.

const RUNS = /^'*[=+\-@\t\r\n＝＋－＠]/; // text that a spreadsheet would run, or that was marked

function copied(model) {
  const { side, rows } = model.get("frame");
  const table = side ? headsTable(model) : rows ? mapTable(model) : rowTable(model);
  const lines = [table.names, ...table.rows].map((row) => row.map(written).join(","));
  return { text: `${lines.join("\n")}\n`, rows: table.rows.length };
}

function written(value) {
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  const safe = RUNS.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function headsTable(model) {
  const { places, caption } = model.get("frame");
  const scores = model.get("scores");
  const rows = places.map(([layer, head], unit) => [layer, head, scores[unit] ?? NaN, caption]);
  return { names: ["layer", "head", model.get("score_name"), "setting"], rows };
}

function rowTable(model) {
  const { query, caption, within: off } = model.get("frame");
  const tokens = model.get("tokens");
  const values = Array.from(floatsOf(model.get("values")), (value, key) => [query, key, visible(tokens[key], 60), value, off, caption]);
  return { names: ["query", "key", "token", "probability", "within", "shown"], rows: values.filter((row) => !Number.isNaN(row[3])) };
}

// The cells of the part that is looked at: each begins at the token that it names.
function mapTable(model) {
  const { rows, cols, query, key, low, high, unit, caption } = model.get("frame");
  const [bytes, tokens, view] = [bytesOf(model.get("pixels")), model.get("tokens"), model.get("view")];
  const [q0, q1, k0, k1] = view.length ? view : [...query, ...key];
  const begins = (place, count, [from, to]) => from + Math.ceil((place * (to - from)) / count);
  const found = [];
  for (let row = 0; row < rows; row++) {
    const reads = begins(row, rows, query);
    if (reads < q0 || reads >= q1) continue;
    for (let col = 0; col < cols; col++) {
      const [seen, byte] = [begins(col, cols, key), bytes[row * cols + col]];
      if (!byte || seen < k0 || seen >= k1) continue;
      const shown = low + ((byte - 1) / 254) * (high - low);
      found.push([reads, seen, visible(tokens[seen], 60), unit.startsWith("log10") ? 10 ** shown : shown, caption]);
    }
  }
  return { names: ["query", "key", "token", "probability", "shown"], rows: found };
}
