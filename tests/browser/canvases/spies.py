"""JavaScript that watches a page from its start: texts that canvases write, listeners that widgets leave."""

# canvas.written: [text, colour] of everything written on a canvas.
# listening(): what the modules of widgets listen to or observe now. anywidget loads such a module from a blob.
SPIES = """
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
  (this.canvas.written ??= []).push([text, this.fillStyle]);
  return fillText.call(this, text, ...place);
};

const live = new Map();
const ofWidgets = () => /blob:/.test(new Error().stack);
const nameOf = (target) => target.nodeName?.toLowerCase() ?? target.constructor.name;
globalThis.listening = () => [...live.values()].flatMap((names) => [...names.values()]).sort();

function note(owner, key, name) {
  if (!ofWidgets()) return;
  if (!live.has(owner)) live.set(owner, new Map());
  live.get(owner).set(key, name);
}

const ids = new WeakMap();
let made = 0;
const idOf = (listener) => ids.get(listener) ?? ids.set(listener, ++made).get(listener);
const { addEventListener, removeEventListener } = EventTarget.prototype;
EventTarget.prototype.addEventListener = function (type, listener, options) {
  if (listener) note(this, `${type} ${idOf(listener)}`, `${nameOf(this)} ${type}`);
  return addEventListener.call(this, type, listener, options);
};
EventTarget.prototype.removeEventListener = function (type, listener, options) {
  if (listener) live.get(this)?.delete(`${type} ${idOf(listener)}`);
  return removeEventListener.call(this, type, listener, options);
};
for (const name of ["ResizeObserver", "MutationObserver"]) {
  const Plain = globalThis[name];
  globalThis[name] = class extends Plain {
    observe(...what) {
      note(this, name, name);
      super.observe(...what);
    }
    disconnect() {
      live.delete(this);
      super.disconnect();
    }
  };
}
"""
