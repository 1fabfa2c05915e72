"use strict";
// Figures over time, by uPlot. A chart's cursor stands at the page's moment; a click moves that.

const LINES = {
  light: ["#0b62c4", "#c2410c", "#17713a", "#8b2fb5", "#9a6700", "#0e7490", "#be185d", "#4b5563"],
  dark: ["#6db3ff", "#ff9a5c", "#5fd38d", "#d69bff", "#f0c24b", "#5fd4e4", "#ff8fc0", "#a5b1c2"],
};

const MOST_SERIES = 24;

class Charts {
  constructor(box, page) {
    Object.assign(this, { box, page, plots: [] });
  }

  build() {
    this.plots.forEach((plot) => plot.destroy());
    this.box.replaceChildren();
    const { record } = this.page, { layers } = record, whole = (v) => (v == null ? "–" : String(v));
    this.plots = [];
    if (layers.length) {
      const xl = record.transformer_xl;
      this.add("Live memories", [...layers.map((layer, i) => [`layer ${i + 1}`, layer.live]), [`Transformer-XL, window ${xl.window}`, xl.live, [6, 4]]], whole);
    }
    this.add("Value", [["value", record.values]]);
    const shown = shownOf(record), names = record.action_names.slice(0, MOST_SERIES);
    const some = names.length < record.action_names.length ? ` (the first ${MOST_SERIES} of ${record.action_names.length})` : "";
    const what = record.continuous ? "Means of the action" : "Action probabilities", moved = record.continuous ? "distribution of actions" : "action probabilities";
    this.add(`${what}${some}`, names.map((name, a) => [name, shown.map((row) => row[a])]), undefined, record.continuous ? undefined : [0, 1]);
    this.add(`Influence of memory: how much the ${moved} would shift with none at all`, [["influence", record.audit.influence]], undefined, [0, 1]);
    this.move();
  }

  add(title, series, format = (v) => (v == null ? "–" : v.toFixed(3)), range = undefined) {
    const holder = element("div", "plot"), colours = LINES[isDark() ? "dark" : "light"];
    holder.append(element("h3", "", title));
    this.box.append(holder);
    const steps = Array.from({ length: this.page.record.steps }, (_, t) => t);
    const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 }, font: `12px ${css("--font")}` };
    const options = {
      width: this.box.clientWidth, height: 128, pxAlign: true, hooks: { ready: [() => this.move()] },
      cursor: { points: { size: 6 }, drag: { x: false, y: false }, y: false },
      scales: { x: { time: false, range: [0, Math.max(1, steps.length - 1)] }, y: range ? { range: [range[0] - 0.02, range[1] + 0.02] } : {} },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 46 }],
      series: [{ label: "step", value: (_, v) => (v == null ? "–" : String(v)) }, ...series.map(([label, , dash], i) => ({ label, stroke: colours[i % 8], width: 2, dash, points: { show: false }, value: (_, v) => format(v) }))],
    };
    const plot = new uPlot(options, [steps, ...series.map(([, values]) => values)], holder);
    plot.over.addEventListener("click", () => this.page.go(plot.cursor.idx ?? this.page.t));
    plot.over.addEventListener("mouseleave", () => this.move());
    this.plots.push(plot);
  }

  /** The cursors to the page's moment. */
  move() {
    for (const plot of this.plots) plot.setCursor({ left: plot.valToPos(this.page.t, "x"), top: 10 }, false);
  }

  resize() {
    for (const plot of this.plots) plot.setSize({ width: this.box.clientWidth, height: 128 });
    this.move();
  }
}
