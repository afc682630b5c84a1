"use strict";
(function () {
  const described = JSON.parse(document.getElementById("descriptions").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 620px)");
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

  // Panels side by side stand one below the other where the window is narrow, each as high as it was.
  function stacked(figure) {
    const { layout, data } = figure;
    const panels = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key) && layout[key].domain).map((x) => {
      const y = x.replace("x", "y");
      return { x, y, from: layout[x].domain, up: layout[y].domain };
    }).sort((a, b) => b.up[1] - a.up[1] || a.from[0] - b.from[0]);
    const rows = new Set(panels.map(({ up }) => up[1])).size;
    if (rows === panels.length) return figure;
    const high = Math.max(...panels.map(({ up }) => up[1] - up[0])) * layout.height;
    const gap = Math.max(80, layout.height / rows - high);
    const height = panels.length * (high + gap);
    const bars = data.filter((trace) => trace.colorbar || (trace.marker && trace.marker.colorbar)).length;
    const changed = { ...layout, height };
    panels.forEach((panel, at) => {
      const top = 1 - (at * (high + gap) + 0.4 * gap) / height;
      panel.to = [0, bars ? 0.84 : 1];
      panel.into = [top - high / height, top];
      changed[panel.x] = { ...layout[panel.x], domain: panel.to, showticklabels: true };
      changed[panel.y] = { ...layout[panel.y], domain: panel.into, showticklabels: true };
    });
    const away = ([low, most], value) => Math.max(low - value, value - most, 0);
    const nearest = (x, y) => {
      const far = ({ from, up }) => away(from, x) + away(up, y);
      return panels.reduce((best, each) => (far(each) < far(best) ? each : best));
    };
    const moved = (x, y, { from, up, to, into } = nearest(x, y)) => ({
      x: Math.min(to[0] + ((x - from[0]) / (from[1] - from[0])) * (to[1] - to[0]), 1),
      y: into[0] + ((y - up[0]) / (up[1] - up[0])) * (into[1] - into[0]),
    });
    changed.annotations = (layout.annotations || []).map((each) =>
      each.xref === "paper" && each.yref === "paper" ? { ...each, ...moved(each.x, each.y) } : each);
    const withBar = (holder) => {
      const bar = holder.colorbar;
      if (bar.x === undefined || bar.y === undefined) return holder;
      const isBelow = bar.orientation === "h";
      const { up, to, into } = nearest(bar.x - (isBelow ? 0 : 0.02), bar.y);
      const y = into[0] + ((bar.y - up[0]) / (up[1] - up[0])) * (into[1] - into[0]);
      const size = isBelow ? to[1] - to[0] : (bar.len * (into[1] - into[0])) / (up[1] - up[0]);
      return { ...holder, colorbar: { ...bar, x: isBelow ? to[0] : to[1] + 0.02, y, len: size } };
    };
    const traces = data.map((trace) => (trace.colorbar ? withBar(trace) : trace.marker && trace.marker.colorbar ? { ...trace, marker: withBar(trace.marker) } : trace));
    return { ...figure, data: traces, layout: changed };
  }

  function draw() {
    const theme = dark.matches ? themes.dark : themes.light;
    for (const [name, whole] of Object.entries(described)) {
      const figure = narrow.matches ? stacked(whole) : whole;
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
  narrow.addEventListener("change", draw);
})();
