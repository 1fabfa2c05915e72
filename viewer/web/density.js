"use strict";
// The lives of hundreds of memories at once. Observations that were written one after the other share a row. Its shade
// is the share of them that is live. On it, in colour, is the attention that they receive at every step.

const MAX_LANES = 80; // live memories; with more, they share rows
const DENSITY_ROWS = 64;
const ROW_HEIGHT = 4; // pixels
const MIN_LINE = 0.05; // attention that is drawn

class Density extends Timeline {
  constructor(...args) {
    super(...args);
    this.last = this.steps; // spans beyond the end are not drawn
    this.size = Math.max(1, Math.ceil(this.steps / DENSITY_ROWS)); // observations of a row
    this.lane = ROW_HEIGHT;
    this.rows = this.countLive();
  }

  get dense() { return true; }
  rowOf(written) { return Math.floor(written / this.size); }
  measure() { this.bottom = this.top + ROW_HEIGHT * this.rows.length; }
  y(written) { return this.top + ROW_HEIGHT * this.rowOf(written); }

  /** For each row and step, how many of its observations are live. */
  countLive() {
    const rows = Array.from({ length: Math.ceil(this.steps / this.size) }, () => new Int32Array(this.steps + 1));
    this.layer.end.forEach((end, w) => { rows[this.rowOf(w)][w]++; rows[this.rowOf(w)][Math.max(end, w + 1)]--; });
    for (const row of rows) for (let t = 1; t <= this.steps; t++) row[t] += row[t - 1];
    return rows;
  }

  /** The share of a row's observations that is live at a step, 0 to 1. */
  share(row, step) {
    return this.rows[row][step] / Math.min(this.size, this.steps - row * this.size);
  }

  paintStill(context) {
    context.fillStyle = css("--dead");
    this.rows.forEach((row, r) => {
      for (let from = 0, t = 1; t <= this.steps; t++) {
        if (t < this.steps && row[t] === row[from]) continue;
        context.globalAlpha = this.share(r, from);
        if (row[from]) context.fillRect(this.toX(from), this.top + ROW_HEIGHT * r, (t - from) * this.scale, ROW_HEIGHT);
        from = t;
      }
    });
    context.globalAlpha = 1;
    this.paintAttention(context);
    context.fillStyle = css("--soft");
    context.font = `12px ${css("--font")}`;
    context.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      const w = Math.round(part * (this.steps - 1));
      context.fillText(w, this.left - 4, this.y(w) + (part ? 4 : 8));
    }
  }

  /** The attention of every step: in each row the largest weight of any head and observation. */
  paintAttention(context) {
    const width = Math.max(1.5, this.scale);
    this.layer.attention.forEach(({ to, weights }, t) => {
      const best = new Map();
      to.forEach((w, i) => {
        const weight = Math.max(...weights.map((row) => row[i])), row = this.rowOf(w);
        if (w < t && weight >= Math.max(MIN_LINE, best.get(row) ?? 0)) best.set(row, weight);
      });
      for (const [row, weight] of best) {
        context.fillStyle = heat(weight);
        context.fillRect(this.toX(t), this.top + ROW_HEIGHT * row, width, ROW_HEIGHT);
      }
    });
  }

  /** A thin line to each memory that is attended to now, from the step at which it was written. */
  paintLive(context, t, weights) {
    for (let w = 0; w <= t; w++) {
      const weight = weights.get(w) ?? 0;
      if (this.layer.end[w] <= t || weight < MIN_LINE) continue;
      context.fillStyle = heat(weight);
      context.fillRect(this.toX(w), this.y(w) + 1, Math.max(3, (t + 1 - w) * this.scale), ROW_HEIGHT - 2);
    }
  }

  /** The observation under the pointer that is attended to most. null for none. */
  at(event) {
    const step = this.toStep(event.offsetX), row = Math.floor((event.offsetY - this.top) / ROW_HEIGHT);
    const weights = this.page.weights[this.index];
    let best = null;
    for (let w = row * this.size; w < Math.min(this.steps, (row + 1) * this.size); w++) {
      if (w < 0 || w > step || this.layer.end[w] <= step) continue;
      if (best === null || (weights.get(w) ?? 0) > (weights.get(best) ?? 0)) best = w;
    }
    return best;
  }
}

/** A layer's timeline: bars, or shades if there are too many live memories. */
function timelineOf(canvas, layer, ...rest) {
  const maxLive = layer.remembered.reduce((a, b) => Math.max(a, b), 0);
  return maxLive > MAX_LANES ? new Density(canvas, layer, ...rest) : new Timeline(canvas, layer, ...rest);
}
