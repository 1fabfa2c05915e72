"use strict";
// The lives of a layer's memories: a bar for each observation from its writing to its end, in the first free lane.

const HEAT = {
  light: ["#9db2c9", "#f0c24b", "#ea7a2b", "#a10d1a"],
  dark: ["#50687f", "#b0611b", "#ff9d33", "#fff2b0"],
};
const HEAT_WEIGHTS = [0, 0.05, 0.25, 1]; // attention weights of those colours

const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colour of an attention weight. */
function heat(weight) {
  const colours = HEAT[isDark() ? "dark" : "light"];
  let i = 1;
  while (i < 3 && weight > HEAT_WEIGHTS[i]) i++;
  const [low, high] = [HEAT_WEIGHTS[i - 1], HEAT_WEIGHTS[i]];
  const part = Math.min(1, Math.max(0, (weight - low) / (high - low)));
  const mixed = [1, 3, 5].map((at) => {
    const [a, b] = [colours[i - 1], colours[i]].map((colour) => parseInt(colour.slice(at, at + 2), 16));
    return Math.round(a + (b - a) * part);
  });
  return `rgb(${mixed})`;
}

/** The lane of each observation, `of`, and their `count`. It is the first lane that is free when it is written. */
function lanesOf(layer) {
  const ends = []; // of each lane, the step at which it is free again
  const of = layer.end.map((end, written) => {
    let lane = ends.findIndex((laneEnd) => laneEnd <= written);
    if (lane < 0) lane = ends.length;
    ends[lane] = Math.max(end, written + 1);
    return lane;
  });
  return { of, count: ends.length };
}

class Timeline {
  constructor(canvas, layer, index, steps, page) {
    Object.assign(this, { canvas, layer, index, steps, page, lanes: lanesOf(layer) });
    this.last = layer.end.reduce((last, _, w) => Math.max(last, this.predictedEnd(w)), 0);
    canvas.addEventListener("pointermove", (event) => page.point(this.at(event), event));
    canvas.addEventListener("pointerleave", () => page.point(null));
    canvas.addEventListener("click", (event) => {
      const written = this.at(event);
      if (written !== null) page.choose(written);
      page.go(Math.floor(this.toStep(event.offsetX)));
    });
  }

  /** The step up to which the memory was predicted to last when it was written. */
  predictedEnd(written) {
    const span = this.layer.span ? this.layer.span[written] : null; // null: kept for good
    return span === null ? this.layer.expires[written] ?? this.steps : written + span;
  }

  get dense() { return false; }
  get scale() { return (this.width - this.left - 4) / this.page.until; }
  toX(step) { return this.left + step * this.scale; }
  toStep(x) { return (x - this.left) / this.scale; }

  /** Lays out the canvas and paints what does not change: all lives, in the colour of expired memories. */
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

  /** Computes the height of a lane and of all of them. */
  measure() {
    this.lane = Math.max(1.5, Math.min(11, 260 / this.lanes.count));
    this.bottom = this.top + Math.max(24, this.lane * this.lanes.count);
  }

  y(written) { return this.top + this.lanes.of[written] * this.lane; }

  paintStill(context) {
    const span = css("--span"), dead = css("--dead");
    for (let w = 0; w < this.steps; w++) {
      if (this.layer.end[w] > w + 1) this.bar(context, w, w, Math.min(this.page.until, this.predictedEnd(w)), span, 1);
    }
    for (let w = 0; w < this.steps; w++) this.life(context, w, dead);
  }

  /** The memories that are live now. weights: the attention that they receive, by observation. */
  paintLive(context, t, weights) {
    for (let w = 0; w <= t; w++) if (this.layer.end[w] > t) this.life(context, w, heat(weights.get(w) ?? 0));
  }

  bar(context, written, begin, end, colour, share) {
    const height = Math.max(1, this.lane * share - (this.lane > 3 ? 1 : 0));
    const width = Math.max(1, (end - begin) * this.scale - (this.scale > 3 ? 0.5 : 0));
    context.fillStyle = colour;
    context.fillRect(this.toX(begin), this.y(written) + (this.lane - height) / 2, width, height);
  }

  /** The life of an observation. When it becomes a part of a merged slot, its bar becomes as thin as that part. */
  life(context, written, colour) {
    const { merged, merge_size: size } = this.layer;
    const share = this.lane >= 5 ? 0.66 : 1, end = Math.max(this.layer.end[written], written + 1);
    const mergeStep = merged ? Math.min(merged[written], end) : end;
    this.bar(context, written, written, mergeStep, colour, share);
    if (mergeStep < end) this.bar(context, written, mergeStep, end, colour, Math.max(0.3, share / size));
  }

  axis(context) {
    context.fillStyle = css("--soft");
    context.font = `12px ${css("--font")}`;
    context.textAlign = "center";
    let gap = 1;
    for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]) {
      gap = step;
      if (step * this.scale > 56) break;
    }
    for (let t = 0; t <= this.page.until && this.toX(t + 0.5) < this.width - 12; t += gap) {
      context.fillText(t, this.toX(t + 0.5), this.height - 5);
    }
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
    context.globalAlpha = 0.55; // the future is paler
    context.fillRect(this.toX(t + 1), 0, this.width, this.bottom);
    context.globalAlpha = 1;
    this.liveNow = this.layer.end.reduce((live, end, w) => live + (w <= t && end > t), 0);
    this.paintLive(context, t, weights[this.index]);
    for (const [w, colour] of [[chosen, css("--accent")], [marked, css("--ink")]]) {
      if (w === null || w === undefined) continue;
      const y = this.y(w);
      context.strokeStyle = colour;
      context.lineWidth = 2;
      const end = Math.max(this.layer.end[w], w + 1);
      context.strokeRect(this.toX(w) - 1.5, y - 1, Math.max(4, (end - w) * this.scale + 3), this.lane + 2);
    }
    context.fillStyle = css("--cursor");
    context.fillRect(this.toX(t + 0.5) - 1, 0, 2, this.bottom);
  }

  /** The observation whose bar is under the pointer, or in narrow lanes the nearest one at that step. null for none. */
  at(event) {
    const step = this.toStep(event.offsetX), lane = (event.offsetY - this.top) / this.lane;
    let nearest = null, minDistance = this.lane < 5 ? 4 / this.lane : 0.5;
    for (let w = 0; w < this.steps; w++) {
      if (w > step || Math.max(this.layer.end[w], w + 1) <= step) continue;
      const distance = Math.abs(this.lanes.of[w] + 0.5 - lane);
      if (distance <= minDistance) { nearest = w; minDistance = distance; }
    }
    return nearest;
  }
}
