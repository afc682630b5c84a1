// Curves of one chart: what lies around them, how each is told from the others, and their legend.

const CHART = { left: 40, right: 8, top: 6, bottom: 30 };
const CURVES = [
  { colour: "first", dash: [] },
  { colour: "second", dash: [6, 3] },
  { colour: "third", dash: [2, 2] },
  { colour: "fourth", dash: [8, 2, 2, 2] },
];

function writeLegend({ legend }, theme, curves) {
  legend.replaceChildren(...curves.map(({ name, colour, dash }) => {
    const entry = document.createElement("span");
    const style = dash.length ? "dashed" : "solid";
    element("span", "sinkscope-sample", entry).style.borderTop = `2px ${style} ${theme[colour]}`;
    entry.append(name);
    return entry;
  }));
}
