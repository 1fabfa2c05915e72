"use strict";
// The page: one moment of one episode, shown everywhere at once. Everything is drawn from `page`.

const page = {
  record: null, film: null, seen: null, timelines: [], charts: null, episode: 0,
  t: 0, layer: "all", head: "max", sort: "attention",
  slots: false, // whether the effects of single slots are unfolded
  chosen: null, marked: null, // observations, by the step at which they were written
  weights: [], // per layer: a map from observations to the attention that they receive now
  until: 0, // the step at which the timelines end
  timer: null, addressing: null, due: false,

  compare: null, // the episode without the memory, if there is one
  beyond: 0, // steps beyond the episode's end, while the other one goes on

  /** Shows step t. */
  go(t) {
    const wanted = Math.max(0, Math.min(this.last(), t));
    this.t = Math.min(this.record.steps - 1, wanted);
    this.beyond = wanted - this.t;
    this.draw();
  },

  /** The step that is shown; beyond the episode's end only the other one moves. */
  now() { return this.t + this.beyond; },
  last() { return (this.compare?.on ? Math.max(this.record.steps, this.compare.record.steps) : this.record.steps) - 1; },

  choose(written) {
    this.chosen = written;
    this.draw();
  },

  /** The observation that the pointer or the focus is on; null for none. */
  point(written, event) {
    const tip = byId("tip");
    tip.hidden = written === null || !event;
    if (!tip.hidden) {
      tip.textContent = told(this, written);
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${event.clientY + 16}px`;
    }
    if (this.marked === written) return;
    this.marked = written;
    this.draw();
  },

  draw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => { this.due = false; this.paint(); });
  },

  paint() {
    const { record, t } = this;
    this.weights = record.layers.map((layer) => {
      const { to, weights } = layer.attention[t];
      const of = this.head === "max" ? to.map((_, i) => Math.max(...weights.map((row) => row[i]))) : weights[this.head] ?? [];
      return new Map(to.map((written, i) => [written, of[i]]));
    });
    drawComparison(this);
    byId("slider").value = this.now();
    byId("slider").setAttribute("aria-valuetext", `step ${this.now()}`);
    byId("clock").textContent = `step ${this.now()} of ${this.beyond ? this.last() : record.steps - 1}`;
    this.drawFilm();
    if (record.layers.length) {
      drawTotals(this);
      drawThumbs(this);
    }
    drawChosen(this);
    markAudit(this);
    this.timelines.forEach((timeline) => timeline.draw());
    this.charts.move();
    document.documentElement.dataset.t = t;
    clearTimeout(this.addressing);
    this.addressing = setTimeout(() => this.address(), this.timer ? 1000 : 120);
  },

  drawFilm() {
    const { record, t, film, seen } = this;
    const subject = this.marked ?? this.chosen;
    if (film) {
      film.draw(byId("world"), t);
      const spot = subject === null ? undefined : film.spot(subject, t);
      if (spot) film.mark(byId("world"), spot, HEAT.light[1]);
      const words = spot === undefined ? "" : spot ? "marked in the picture" : "outside of what the picture shows now";
      byId("place").textContent = subject === null || spot === undefined ? "" : `Where the observation of step ${subject} was made: ${words}.`;
      byId("world").setAttribute("aria-label", `The world at step ${t}`);
    }
    seen.draw(byId("view"), t);
    const facts = byId("facts");
    let gained = 0;
    for (let i = 0; i <= t; i++) gained += record.rewards[i];
    const rows = { step: t, action: actionText(record, t), reward: trimmed(record.rewards[t]), "return so far": trimmed(gained), value: record.values[t]?.toFixed(3) ?? "–" };
    facts.replaceChildren(...Object.entries(rows).flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
    drawChances(record, t);
    drawEntries(record, t);
  },

  /** The moment into the address, so that it can be sent to somebody. A frame in a notebook has no address. */
  address() {
    if (location.protocol === "about:") return;
    const wanted = `#${this.episode ? `e=${this.episode}&` : ""}t=${this.now()}`;
    if (location.hash !== wanted) history.replaceState(null, "", wanted);
  },

  play(on) {
    clearInterval(this.timer);
    this.timer = null;
    byId("play").textContent = on ? "❚❚" : "▶";
    byId("play").setAttribute("aria-label", on ? "Pause" : "Play");
    if (!on) return;
    if (this.now() >= this.last()) this.go(0);
    this.timer = setInterval(() => (this.now() >= this.last() ? this.play(false) : this.go(this.now() + 1)), 1000 / Number(byId("speed").value));
  },

  nextDecision(back) {
    const { decisions } = this.record.audit;
    const next = back ? decisions.findLast((step) => step < this.t) : decisions.find((step) => step > this.t) ?? decisions[0];
    if (next !== undefined) this.go(next);
  },

  /** Lays out what depends on the width and the colours. */
  layOut() {
    this.timelines.forEach((timeline) => timeline.layOut());
    const colours = HEAT_AT.map((at, i) => `${heat(at)} ${Math.round((100 * i) / 3)}%`);
    const bar = element("i");
    bar.style.background = `linear-gradient(to right, ${colours})`;
    byId("scale").replaceChildren("live, attention 0", bar, "1");
    this.charts.build();
    this.paint();
  },

  async open(index, t) {
    this.play(false);
    const data = await unpacked(byId(`episode-${index}`).textContent);
    const { record } = data;
    Object.assign(this, { episode: index, record, chosen: null, marked: null, layer: "all", head: "max" });
    this.film = data.film && (await Film.of(data.film));
    this.seen = await Seen.of(data.seen);
    this.compare = data.without ? await Comparison.of(data.without, record.without) : null;
    this.beyond = 0;
    byId("thumbs").replaceChildren();
    delete byId("effect").dataset.shown;
    const box = byId("timelines");
    box.replaceChildren();
    this.timelines = record.layers.map((layer, i) => {
      const holder = element("div"), canvas = element("canvas");
      holder.append(element("h3", "", `Layer ${i + 1} of ${record.layers.length}`), canvas);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Lives of the memories of layer ${i + 1}`);
      box.append(holder);
      return timelineOf(canvas, layer, i, record.steps, this);
    });
    describe(this);
    // Room for what was still to come when the episode ended, but no more than a fifth of it.
    const last = Math.max(...this.timelines.map((timeline) => timeline.last));
    this.until = Math.max(record.steps + 1, Math.min(last, record.steps * 1.2));
    this.charts ??= new Charts(byId("charts"), this);
    buildAudit(this);
    this.chosen = record.story.written; // what is shown first
    const wanted = Math.max(0, Math.min(this.last(), t ?? record.story.step));
    this.t = Math.min(record.steps - 1, wanted);
    this.beyond = wanted - this.t;
    this.layOut();
    document.documentElement.dataset.ready = index;
    document.documentElement.dataset.milliseconds = Math.round(performance.now()); // to the first picture
  },
};

const trimmed = (number) => String(Number((number ?? NaN).toFixed(4)));

function told(page, written) {
  const lives = page.record.layers.map((layer, i) => `layer ${i + 1}: ${spanText(layer, written)}${Math.max(1, layer.end[written] - written)} steps live, at most ${two(layer.peak[written])} attention`);
  return [`observation of step ${written}${showsText(page.record, written)}`, ...lives].join("\n");
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** What does not change while an episode is shown. */
function describe(page) {
  const { record } = page, title = byId("title"), success = record.info.is_success;
  const [first, ...rest] = record.outcome.split(", ");
  byId("headline").textContent = record.story.headline;
  byId("detail").textContent = record.story.detail;
  title.className = success === true ? "good" : success === false ? "bad" : "";
  title.replaceChildren(`${record.env}: `, element("b", "", first), rest.length ? `, ${rest.join(", ")}` : "");
  const info = Object.entries(record.info).filter(([key]) => key !== "is_success").slice(0, 6).map(([key, value]) => `${key.replaceAll("_", " ")}: ${typeof value === "number" ? trimmed(value) : value}`);
  const how = `seed ${record.seed}, ${record.deterministic ? "the most likely actions" : "actions drawn from the policy"}`;
  const undrawn = record.not_drawn ? [`the world could not be drawn (${record.not_drawn})`] : [];
  byId("about").textContent = [record.policy, `memory ${record.memory}`, how, ...info, ...undrawn].join(" · ");
  const has = record.layers.length > 0;
  for (const id of ["memory", "lives", "audit"]) byId(id).hidden = !has;
  byId("frame").hidden = !page.film;
  byId("place").hidden = !page.film || !has;
  byId("decision").hidden = !record.audit.decisions.length;
  describeActions(record);
  buildEntries(record);
  if (!has) return;
  byId("layer").replaceChildren(new Option("all", "all"), ...record.layers.map((_, i) => new Option(i + 1, i)));
  byId("head").replaceChildren(new Option("all heads, the largest", "max"), ...Array.from({ length: record.layers[0].heads }, (_, h) => new Option(`head ${h + 1}`, h)));
  byId("lives-note").textContent = page.timelines.some((timeline) => timeline.dense) ? densityNote(page.timelines) : lifeNote(record.layers);
}

function densityNote(timelines) {
  const { size } = timelines.find((timeline) => timeline.dense);
  const rows = size > 1 ? `Each row is ${size} observations, written one after the other` : "Each row is an observation";
  return `${rows}, the earliest on top (numbers on the left: the step of writing). The greyer, the more of them are live at that step; in colour, the attention that they receive there, from ${LEAST_LINE} on. Lines lead to what is attended to at this moment. Ticks below are decisions.`;
}

/** How to read the bars, by what the memory kind does. */
function lifeNote(layers) {
  const one = layers[0], begin = "One bar per observation, from the step it is written to the step it is forgotten";
  const end = "Live ones are coloured by the attention that they receive at this moment. Ticks below are decisions.";
  if (one.merged) return `${begin}. It thins where ${one.merge_size} of them are compressed into one memory. ${end}`;
  if (one.span) return `${begin}; the bluish part behind it is the span that was predicted, the rest the ramp over which it fades. ${end}`;
  if (one.head_spans) {
    const spans = layers.map((layer, i) => `layer ${i + 1}: ${layer.head_spans.map(Math.round).join(", ")}`).join("; ");
    return `${begin}: what the head with the longest span reaches (spans of the heads, ${spans}). ${end}`;
  }
  return `${begin}${one.window ? `: a window of ${one.window} steps that slides along` : ""}. ${end}`;
}

function asked() {
  const wanted = new URLSearchParams(location.hash.slice(1)), number = (key) => (/^\d+$/.test(wanted.get(key) ?? "") ? Number(wanted.get(key)) : undefined);
  return { e: number("e"), t: number("t") };
}

function listen() {
  const on = (id, event, act) => byId(id).addEventListener(event, act);
  on("slider", "input", (event) => page.go(Number(event.target.value)));
  on("back", "click", () => page.go(page.now() - 1));
  on("forth", "click", () => page.go(page.now() + 1));
  on("compare", "click", () => { page.compare.on = !page.compare.on; page.go(page.now()); });
  on("play", "click", () => page.play(!page.timer));
  on("decision", "click", () => page.nextDecision(false));
  on("save", "click", () => savePicture(page));
  on("speed", "change", () => page.timer && page.play(true));
  on("sort", "change", (event) => { page.sort = event.target.value; page.draw(); });
  on("layer", "change", (event) => { page.layer = event.target.value === "all" ? "all" : Number(event.target.value); page.draw(); });
  on("head", "change", (event) => { page.head = event.target.value === "max" ? "max" : Number(event.target.value); page.draw(); });
  on("episode", "change", (event) => page.open(Number(event.target.value)));
  addEventListener("hashchange", () => {
    const { e, t } = asked();
    if (e !== undefined && e !== page.episode && byId(`episode-${e}`)) page.open(e, t);
    else if (t !== undefined && t !== page.now()) page.go(t);
  });
  addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 10 : 1;
    const acts = {
      ArrowLeft: () => page.go(page.now() - far), ArrowRight: () => page.go(page.now() + far),
      Home: () => page.go(0), End: () => page.go(page.last()),
      d: () => page.nextDecision(false), D: () => page.nextDecision(true),
      s: () => savePicture(page),
    };
    if (event.target.tagName !== "BUTTON") acts[" "] = () => page.play(!page.timer);
    if (!(event.key in acts)) return;
    event.preventDefault();
    acts[event.key]();
  });
  let wait = null, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // on a phone the address bar comes and goes
    width = innerWidth;
    clearTimeout(wait);
    wait = setTimeout(() => page.layOut(), 80);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.layOut());
}

function begin() {
  const list = JSON.parse(byId("list").textContent);
  byId("episodes").hidden = list.length < 2;
  byId("episode").replaceChildren(...list.map((one, i) => new Option(`${i + 1}. seed ${one.seed}: ${one.outcome}`, i)));
  buildSummary(JSON.parse(byId("summary-data").textContent), list.length);
  byId("address-note").hidden = location.protocol === "about:";
  listen();
  const { e, t } = asked(), first = e !== undefined && e < list.length ? e : 0;
  byId("episode").value = first;
  page.open(first, t).catch((error) => { byId("title").textContent = `The page could not be read: ${error.message}`; throw error; });
}

begin();
