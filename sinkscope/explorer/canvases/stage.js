// What the canvases share: a lifetime that ends cleanly, a canvas that knows its box and theme, a tooltip.

// Everything that a view starts is given to its lifetime, so that closing the view takes all of it away.
function lifetime() {
  const ends = [];
  return {
    on(target, type, listener, options) {
      target.addEventListener(type, listener, options);
      ends.push(() => target.removeEventListener(type, listener, options));
    },
    follow(model, events, listener) {
      for (const event of events) {
        model.on(event, listener);
        ends.push(() => model.off(event, listener));
      }
    },
    ends(end) {
      ends.push(end);
    },
    end() {
      while (ends.length) ends.pop()();
    },
  };
}

// Draws at most once per frame of the screen, however many traits one message has changed. A hidden box is not drawn
// to: when it is shown its size changes, and `followPage` sees that. While JupyterLab changes its theme it hides
// everything for less than a frame, which no size observer sees, so a few frames are waited for.
function onNextFrame(life, box, draw) {
  let pending = 0;
  const attempt = (left) => {
    pending = requestAnimationFrame(() => {
      pending = 0;
      if (box.clientWidth) draw();
      else if (left) attempt(left - 1);
    });
  };
  life.ends(() => cancelAnimationFrame(pending));
  return () => {
    if (!pending) attempt(3);
  };
}

// Calls `redraw` when the box changes its width, the window its height or the page its theme.
function followPage(life, box, redraw) {
  const sizes = new ResizeObserver(redraw);
  sizes.observe(box);
  life.ends(() => sizes.disconnect());
  const themes = new MutationObserver(redraw);
  const names = ["data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind"];
  themes.observe(document.body, { attributeFilter: names });
  themes.observe(document.documentElement, { attributeFilter: ["theme"] }); // Colab
  life.ends(() => themes.disconnect());
  life.on(matchMedia("(prefers-color-scheme: dark)"), "change", redraw);
  life.on(window, "resize", redraw);
}

// The height in css pixels that one picture may take, so that the controls above it stay on the same screen.
function tallest() {
  return Math.max(300, window.innerHeight - 372);
}

// The colours of the page as the style sheet resolves them for this element.
function themeOf(root) {
  const style = getComputedStyle(root);
  const read = (name) => style.getPropertyValue(`--sinkscope-${name}`).trim();
  const names = ["ink", "faint", "paper", "line", "accent", "shade", "bar", "first", "second", "third", "fourth"];
  return Object.fromEntries(names.map((name) => [name, read(name)]));
}

// A context in css pixels, cleared, on a canvas with as many pixels as the screen has there.
function fitted(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(across / width, 0, 0, down / height, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// Nothing is there to be shown, and what was shown is no longer true. The stage then says what it waits for.
function blank(canvas) {
  canvas.width = canvas.height = 0;
  canvas.style.width = canvas.style.height = "0";
  canvas.removeAttribute("data-request");
  canvas.removeAttribute("data-caption");
  canvas.sinkscope = undefined;
}

// A line that is seen on any colour: the accent inside a casing of the background.
function casedLine(context, theme, width, path) {
  for (const [colour, thickness] of [[theme.paper, width + 2], [theme.accent, width]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    path(context);
    context.stroke();
  }
}

// Where a canvas stands; until something is drawn on it, the words of `waiting` stand there.
function stageIn(root, waiting) {
  const stage = element("div", "sinkscope-stage", root);
  stage.dataset.waiting = waiting;
  return stage;
}

function tipIn(stage) {
  const tip = element("div", "sinkscope-tip", stage);
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  return tip;
}

function element(tag, className, parent, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

// Bytes arrive as a DataView into a longer message.
function bytesOf(value) {
  if (!value) return new Uint8Array();
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
}

function floatsOf(value) {
  const bytes = bytesOf(value);
  return new Float32Array(bytes.slice().buffer); // a copy: the offset in the message need not be a multiple of four
}

// JupyterLab would take arrows and letters for its own shortcuts.
function keepKeys(life, node, onKey) {
  node.setAttribute("data-lm-suppress-shortcuts", "true");
  life.on(node, "keydown", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey) return;
    if (onKey(event)) event.preventDefault();
  });
}

// C copies the table of a canvas, as CSV: Python is asked for it, as it has the exact numbers.
function listenToCopies(life, model, root, node) {
  const said = element("div", "sinkscope-copied", root);
  said.setAttribute("role", "status");
  said.hidden = true;
  const say = (words) => {
    said.textContent = words;
    said.hidden = false;
  };
  life.on(node, "keydown", (event) => {
    if (event.key.toLowerCase() === "c" && !event.ctrlKey && !event.metaKey && !event.altKey) model.send({ kind: MESSAGES.COPY });
  });
  life.follow(model, ["msg:custom"], (message) => {
    if (message?.kind !== MESSAGES.COPY) return;
    if (typeof message.text !== "string") return say(message.problem ?? "there is no table to copy here");
    const refused = () => say("this page may not copy; save the table instead");
    if (!navigator.clipboard) return refused();
    navigator.clipboard.writeText(message.text).then(() => say(`copied as CSV: ${message.rows} rows`), refused);
  });
}

// Tells the other canvases of the same explorer which tokens are pointed at, by `query` and `key`, and hears of theirs;
// null where there is none any more.
function pointing(life, root, heard) {
  const home = () => root.closest(".sinkscope-app");
  life.on(document, "sinkscope-tokens", ({ detail }) => {
    if (detail.from !== root && home() && home() === detail.from.closest(".sinkscope-app")) heard(detail.tokens);
  });
  let last = null;
  return (tokens) => {
    if (tokens?.query === last?.query && tokens?.key === last?.key) return;
    last = tokens;
    document.dispatchEvent(new CustomEvent("sinkscope-tokens", { detail: { from: root, tokens } }));
  };
}

function showStale(root, canvas, dimmed) {
  root.classList.toggle("sinkscope-dimmed", dimmed);
  root.setAttribute("aria-busy", String(dimmed));
  canvas.setAttribute("aria-busy", String(dimmed));
}

// What a test may read back: the numbers that are on the canvas now.
function signed(canvas, drawn) {
  canvas.dataset.request = String(drawn.frame.request ?? "");
  canvas.dataset.caption = drawn.frame.caption ?? "";
  canvas.sinkscope = drawn;
}

// Lines of text at (x, y) of the stage, kept inside it.
function showTip(stage, tip, x, y, lines) {
  tip.replaceChildren(...lines.map((line) => {
    const row = document.createElement("div");
    row.textContent = line;
    return row;
  }));
  tip.hidden = false;
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = x + 14 + width > stage.clientWidth ? x - 14 - width : x + 14;
  const top = y + 14 + height > stage.clientHeight ? y - 14 - height : y + 14;
  tip.style.left = `${clamp(left, 0, Math.max(0, stage.clientWidth - width))}px`;
  tip.style.top = `${Math.max(0, top)}px`;
}

// Where the pointer is, in css pixels of the element.
function pointIn(node, event) {
  const box = node.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// Scrolls the box, and nothing around it, until the part from `top` on is seen with some room above and below.
function scrollInside(box, top, height, room = 10) {
  const bottom = top + height + room - box.clientHeight;
  if (top - room < box.scrollTop) box.scrollTop = top - room;
  else if (bottom > box.scrollTop) box.scrollTop = bottom;
}
