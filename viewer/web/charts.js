"use strict";
// Charts over time, by uPlot. The cursor of a chart is at the step that the page shows. A click moves the page.

const LINES = {
  light: ["#0b62c4", "#c2410c", "#17713a", "#8b2fb5", "#9a6700", "#0e7490", "#be185d", "#4b5563"],
  dark: ["#6db3ff", "#ff9a5c", "#5fd38d", "#d69bff", "#f0c24b", "#5fd4e4", "#ff8fc0", "#a5b1c2"],
};

const MAX_SERIES = 24; // of a distribution

class Charts {
  constructor(box, page) {
    Object.assign(this, { box, page, plots: [] });
  }

  build() {
    this.plots.forEach((plot) => plot.destroy());
    this.box.replaceChildren();
    const { record } = this.page, { layers } = record, wholeNumber = (v) => (v == null ? "–" : String(v));
    this.plots = [];
    if (layers.length) {
      const xl = record.transformer_xl;
      const series = layers.map((layer, i) => [`layer ${i + 1}`, layer.live]);
      series.push([`Transformer-XL, window ${xl.window}`, xl.live, [6, 4]]);
      this.add("Live memories", series, wholeNumber);
    }
    this.add("Value", [["value", record.values]]);
    const rows = distributionOf(record), total = record.action_names.length;
    const names = record.action_names.slice(0, MAX_SERIES);
    const part = names.length < total ? ` (the first ${MAX_SERIES} of ${total})` : "";
    const title = record.continuous ? "Means of the action" : "Action probabilities";
    const range = record.continuous ? undefined : [0, 1];
    this.add(`${title}${part}`, names.map((name, a) => [name, rows.map((row) => row[a])]), undefined, range);
    const distribution = record.continuous ? "distribution of actions" : "action probabilities";
    const influenceTitle = `Influence of memory: how much the ${distribution} would shift with none at all`;
    this.add(influenceTitle, [["influence", record.audit.influence]], undefined, [0, 1]);
    this.move();
  }

  add(title, series, format = (v) => (v == null ? "–" : v.toFixed(3)), range = undefined) {
    const holder = element("div", "plot"), colours = LINES[isDark() ? "dark" : "light"];
    holder.append(element("h3", "", title));
    this.box.append(holder);
    const steps = Array.from({ length: this.page.record.steps }, (_, t) => t);
    const line = { stroke: css("--line"), width: 1 };
    const axis = { stroke: css("--soft"), grid: line, ticks: line, font: `12px ${css("--font")}` };
    const lines = series.map(([label, , dash], i) => ({
      label, stroke: colours[i % 8], width: 2, dash, points: { show: false }, value: (_, v) => format(v),
    }));
    const y = range ? { range: [range[0] - 0.02, range[1] + 0.02] } : {};
    const options = {
      width: this.box.clientWidth, height: 128, pxAlign: true, hooks: { ready: [() => this.move()] },
      cursor: { points: { size: 6 }, drag: { x: false, y: false }, y: false },
      scales: { x: { time: false, range: [0, Math.max(1, steps.length - 1)] }, y },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 46 }],
      series: [{ label: "step", value: (_, v) => (v == null ? "–" : String(v)) }, ...lines],
    };
    const plot = new uPlot(options, [steps, ...series.map(([, values]) => values)], holder);
    plot.over.addEventListener("click", () => this.page.go(plot.cursor.idx ?? this.page.t));
    plot.over.addEventListener("mouseleave", () => this.move());
    this.plots.push(plot);
  }

  /** Moves the cursors to the step that the page shows. */
  move() {
    for (const plot of this.plots) plot.setCursor({ left: plot.valToPos(this.page.t, "x"), top: 10 }, false);
  }
}
