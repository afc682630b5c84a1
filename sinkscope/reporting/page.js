"use strict";
(function () {
  const described = JSON.parse(document.getElementById("descriptions").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const themes = {
    light: { blue: "#0072b2", vermilion: "#d55e00", green: "#009e73", purple: "#b35a93", orange: "#c98a00", sky: "#56b4e9",
      ink: "#1c1b1a", quiet: "#7a766f", faint: "#b9b4ac", grid: "#ece8e2" },
    dark: { blue: "#5bb1ea", vermilion: "#f28b46", green: "#3fc79d", purple: "#dc94c0", orange: "#f0b840", sky: "#8fcbee",
      ink: "#e8e6e1", quiet: "#a19d96", faint: "#6d6a66", grid: "#2c2f33" },
  };

  // Only colours are looked up, and only under the keys that hold them: no token text is ever touched.
  function coloured(value, theme, key) {
    if (Array.isArray(value)) return value.map((each) => (typeof each === "object" ? coloured(each, theme) : each));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, theme, name)]));
    }
    if ((key === "color" || key === "fillcolor") && typeof value === "string" && value[0] === "@") {
      const [name, band] = value.slice(1).split("-");
      return band ? theme[name] + "38" : theme[name];
    }
    return value;
  }

  function draw() {
    const theme = dark.matches ? themes.dark : themes.light;
    for (const [name, figure] of Object.entries(described)) {
      const place = document.getElementById("plot-" + name);
      if (!place) continue;
      const { height, ...layout } = coloured(figure.layout, theme);
      place.style.height = height + "px";  // a plot that fits its window keeps its height only this way
      const axis = { gridcolor: theme.grid, zeroline: false, linecolor: theme.quiet, ticks: "outside", tickcolor: theme.quiet,
        ticklen: 4, automargin: true };
      for (const key of Object.keys(layout)) {
        if (/^[xy]axis\d*$/.test(key)) layout[key] = { ...axis, ...(layout[key].type === "log" ? { dtick: 1, exponentformat: key[0] === "y" ? "power" : "none", separatethousands: true } : {}), ...layout[key] };
      }
      const heat = figure.data[0] && figure.data[0].type === "heatmap";
      if (heat) for (const key of ["xaxis", "yaxis"]) layout[key].showgrid = false;
      Plotly.react(place, coloured(figure.data, theme), {
        ...layout,
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: theme.ink },
        margin: { l: 62, r: 18, t: 14, b: 48 },
        legend: { ...layout.legend, orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal", font: { size: 11.5 } },
        hoverlabel: { font: { size: 12.5 }, align: "left" }, hovermode: "closest",
      }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
        toImageButtonOptions: { filename: name, format: "svg" } });
    }
    document.documentElement.dataset.drawn = "yes";
  }

  draw();
  dark.addEventListener("change", draw);
})();
