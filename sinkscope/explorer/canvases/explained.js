// Names and one-line explanations of the controls around the canvases, which their own library leaves out: on hover, and
// for screen readers.

export default {
  render({ model, el }) {
    const life = lifetime();
    let pending = 0;
    const explain = () => {
      pending = 0;
      const app = el.closest(".sinkscope-app");
      if (!app) return;
      const words = model.get("words");
      for (const label of app.querySelectorAll(".widget-label")) {
        const row = label.parentElement;
        if (row?.classList.contains("widget-inline-hbox")) explainControl(row, label.textContent, words);
      }
    };
    const later = () => {
      if (!pending) pending = requestAnimationFrame(explain);
    };
    const changes = new MutationObserver(later);
    life.ends(() => changes.disconnect());
    life.ends(() => cancelAnimationFrame(pending));
    life.follow(model, ["change:words"], later);
    requestAnimationFrame(() => { // once it stands in the page
      changes.observe(el.closest(".sinkscope-app") ?? el, { childList: true, subtree: true });
      later();
    });
    return () => life.end();
  },
};

function explainControl(row, name, words) {
  const told = words[name] ?? "";
  const handles = [...row.querySelectorAll(".noUi-handle")];
  const parts = [...row.querySelectorAll("select, input"), ...handles, ...row.querySelectorAll(".widget-readout")];
  for (const part of parts) {
    const end = handles.length > 1 && handles.includes(part) ? [", first", ", last"][handles.indexOf(part)] : "";
    const typed = part.classList.contains("widget-readout") ? ", typed" : "";
    part.setAttribute("aria-label", `${name}${end}${typed}`);
    if (told) part.setAttribute("aria-description", told);
    if (typed) part.setAttribute("role", "textbox");
  }
  if (!told) return;
  row.title = told;
  for (const part of row.querySelectorAll("label, select")) part.title = told;
}
