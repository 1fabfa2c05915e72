"use strict";
// The lives of a layer's memories: a bar per observation from its writing to its end, in the first lane that is free.

const HEAT = {
  light: ["#9db2c9", "#f0c24b", "#ea7a2b", "#a10d1a"],
  dark: ["#50687f", "#b0611b", "#ff9d33", "#fff2b0"],
};
const HEAT_AT = [0, 0.05, 0.25, 1]; // attention weights of those colours

const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function heat(weight) {
  const colours = HEAT[isDark() ? "dark" : "light"];
  let i = 1;
  while (i < 3 && weight > HEAT_AT[i]) i++;
  const part = Math.min(1, Math.max(0, (weight - HEAT_AT[i - 1]) / (HEAT_AT[i] - HEAT_AT[i - 1])));
  const mixed = [1, 3, 5].map((at) => {
    const [a, b] = [colours[i - 1], colours[i]].map((colour) => parseInt(colour.slice(at, at + 2), 16));
    return Math.round(a + (b - a) * part);
  });
  return `rgb(${mixed})`;
}

/** Lanes: each observation gets the first one that is free when it is written. */
function lanesOf(layer) {
  const lanes = [], free = [];
  const of = layer.end.map((end, written) => {
    let lane = free.findIndex((until) => until <= written);
    if (lane < 0) lane = free.length;
    free[lane] = Math.max(end, written + 1);
    return lane;
  });
  lanes.push(...of);
  return { of: lanes, count: free.length };
}

class Timeline {
  constructor(canvas, layer, index, steps, page) {
    Object.assign(this, { canvas, layer, index, steps, page, lanes: lanesOf(layer) });
    this.last = layer.end.reduce((most, _, w) => Math.max(most, this.predicted(w)), 0);
    canvas.addEventListener("pointermove", (event) => page.point(this.at(event), event));
    canvas.addEventListener("pointerleave", () => page.point(null));
    canvas.addEventListener("click", (event) => {
      const written = this.at(event);
      if (written !== null) page.choose(written);
      page.go(Math.floor(this.toStep(event.offsetX)));
    });
  }

  /** Up to which step the memory was meant to last when it was written. */
  predicted(written) {
    const span = this.layer.span ? this.layer.span[written] : null; // null: kept for good
    return span === null ? this.layer.expires[written] ?? this.steps : written + span;
  }

  get dense() { return false; }
  get scale() { return (this.width - this.left - 4) / this.page.until; }
  toX(step) { return this.left + step * this.scale; }
  toStep(x) { return (x - this.left) / this.scale; }

  /** Lays the canvas out and paints what does not change: all lives, in the colour of the dead. */
  layOut() {
    const ratio = window.devicePixelRatio || 1;
    this.left = 34;
    this.width = this.canvas.parentElement.clientWidth;
    this.top = 4;
    this.measure();
    this.height = this.bottom + 20;
    this.canvas.style.height = `${this.height}px`;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.ratio = ratio;
    this.still = document.createElement("canvas");
    this.still.width = this.canvas.width;
    this.still.height = this.canvas.height;
    const context = this.still.getContext("2d");
    context.scale(ratio, ratio);
    this.paintStill(context);
    this.axis(context);
  }

  /** How high all of it is. */
  measure() {
    this.lane = Math.max(1.5, Math.min(11, 260 / this.lanes.count));
    this.bottom = this.top + Math.max(24, this.lane * this.lanes.count);
  }

  y(written) { return this.top + this.lanes.of[written] * this.lane; }

  paintStill(context) {
    const span = css("--span"), dead = css("--dead");
    for (let w = 0; w < this.steps; w++) if (this.layer.end[w] > w + 1) this.bar(context, w, w, Math.min(this.page.until, this.predicted(w)), span, 1);
    for (let w = 0; w < this.steps; w++) this.life(context, w, dead);
  }

  /** The memories that are live now. weights: the attention that they receive, by observation. */
  paintLive(context, t, weights) {
    for (let w = 0; w <= t; w++) if (this.layer.end[w] > t) this.life(context, w, heat(weights.get(w) ?? 0));
  }

  bar(context, written, from, until, colour, share) {
    const y = this.y(written);
    const tall = Math.max(1, this.lane * share - (this.lane > 3 ? 1 : 0));
    context.fillStyle = colour;
    context.fillRect(this.toX(from), y + (this.lane - tall) / 2, Math.max(1, (until - from) * this.scale - (this.scale > 3 ? 0.5 : 0)), tall);
  }

  /** The life of an observation; once it is only a part of a slot its bar is as thin as its part. */
  life(context, written, colour) {
    const { end, merged, merge_size: size } = this.layer;
    const share = this.lane >= 5 ? 0.66 : 1, until = Math.max(end[written], written + 1);
    const turn = merged ? Math.min(merged[written], until) : until;
    this.bar(context, written, written, turn, colour, share);
    if (turn < until) this.bar(context, written, turn, until, colour, Math.max(0.3, share / size));
  }

  axis(context) {
    context.fillStyle = css("--soft");
    context.font = `12px ${css("--font")}`;
    context.textAlign = "center";
    let gap = 1;
    for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]) { gap = step; if (step * this.scale > 56) break; }
    for (let t = 0; t <= this.page.until && this.toX(t + 0.5) < this.width - 12; t += gap) context.fillText(t, this.toX(t + 0.5), this.height - 5);
    context.fillStyle = css("--cursor"); // decisions
    for (const t of this.page.record.audit.decisions) context.fillRect(this.toX(t + 0.5) - 1, this.bottom, 2, 5);
    context.strokeStyle = css("--soft");
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(this.toX(this.steps), this.top);
    context.lineTo(this.toX(this.steps), this.bottom);
    context.stroke();
    context.setLineDash([]);
  }

  draw() {
    const { t, weights, marked, chosen } = this.page;
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.still, 0, 0);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.fillStyle = css("--card");
    context.globalAlpha = 0.55; // what is still to come
    context.fillRect(this.toX(t + 1), 0, this.width, this.bottom);
    context.globalAlpha = 1;
    this.liveNow = this.layer.end.reduce((live, end, w) => live + (w <= t && end > t), 0);
    this.paintLive(context, t, weights[this.index]);
    for (const [w, colour] of [[chosen, css("--accent")], [marked, css("--ink")]]) {
      if (w === null || w === undefined) continue;
      const y = this.y(w);
      context.strokeStyle = colour;
      context.lineWidth = 2;
      const until = Math.max(this.layer.end[w], w + 1);
      context.strokeRect(this.toX(w) - 1.5, y - 1, Math.max(4, (until - w) * this.scale + 3), this.lane + 2);
    }
    context.fillStyle = css("--cursor");
    context.fillRect(this.toX(t + 0.5) - 1, 0, 2, this.bottom);
  }

  /** The observation under the pointer: its bar, or in narrow lanes the nearest one of that moment; null for none. */
  at(event) {
    const step = this.toStep(event.offsetX), lane = (event.offsetY - this.top) / this.lane;
    let best = null, near = this.lane < 5 ? 4 / this.lane : 0.5;
    for (let w = 0; w < this.steps; w++) {
      if (w > step || Math.max(this.layer.end[w], w + 1) <= step) continue;
      const away = Math.abs(this.lanes.of[w] + 0.5 - lane);
      if (away <= near) { best = w; near = away; }
    }
    return best;
  }
}
