"use strict";
// The page: one step of one episode, in all parts of the page at once. Everything is drawn from `page`.

const page = {
  record: null, film: null, seen: null, timelines: [], charts: null, episode: 0,
  asked: { index: 0 }, // what open() was last called for; the episode is the one that is shown
  t: 0, layer: "all", head: "max", sort: "attention",
  slots: false, // whether the effects of single slots are unfolded
  chosen: null, marked: null, // observations, by the step at which they were written
  weights: [], // for each layer a map from observations to the attention that they receive now
  until: 0, // the step at which the timelines end
  timer: null, addressTimer: null, due: false,

  compare: null, // the episode without the memory, if there is one
  beyond: 0, // steps beyond the episode's end, while the other one goes on

  /** Shows step t. */
  go(t) {
    this.setStep(t);
    this.draw();
  },

  setStep(t) {
    const step = Math.max(0, Math.min(this.last(), t));
    this.t = Math.min(this.record.steps - 1, step);
    this.beyond = step - this.t;
  },

  /** The step that is shown. Beyond the episode's end only the other episode moves. */
  now() { return this.t + this.beyond; },
  last() {
    const { steps } = this.record;
    return (this.compare?.on ? Math.max(steps, this.compare.record.steps) : steps) - 1;
  },

  choose(written) {
    this.chosen = written;
    this.draw();
  },

  /** Marks the observation that the pointer or the focus is on. null for none. */
  point(written, event) {
    const tip = byId("tip");
    tip.hidden = written === null || !event;
    if (!tip.hidden) {
      tip.textContent = tipText(this, written);
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
      const largest = () => to.map((_, i) => Math.max(...weights.map((row) => row[i])));
      const headWeights = this.head === "max" ? largest() : weights[this.head] ?? [];
      return new Map(to.map((written, i) => [written, headWeights[i]]));
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
    clearTimeout(this.addressTimer);
    this.addressTimer = setTimeout(() => this.updateAddress(), this.timer ? 1000 : 120);
  },

  drawFilm() {
    const { record, t } = this;
    if (this.film) this.drawWorld();
    this.seen.draw(byId("view"), t);
    const facts = {
      step: t,
      action: actionText(record, t),
      reward: trimmed(record.rewards[t]),
      "return so far": trimmed(record.returns[t]),
      value: record.values[t]?.toFixed(3) ?? "–",
    };
    const nodes = Object.entries(facts).flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]);
    byId("facts").replaceChildren(...nodes);
    drawChances(record, t);
    drawEntries(record, t);
  },

  /** The world, with a mark where the pointed or chosen observation was made. */
  drawWorld() {
    const { t, film } = this;
    const subject = this.marked ?? this.chosen;
    film.draw(byId("world"), t);
    const spot = subject === null ? undefined : film.spot(subject, t);
    if (spot) film.mark(byId("world"), spot, HEAT.light[1]);
    const place = spot ? "marked in the picture" : "outside of what the picture shows now";
    const text = `Where the observation of step ${subject} was made: ${place}.`;
    byId("place").textContent = spot === undefined ? "" : text;
    byId("world").setAttribute("aria-label", `The world at step ${t}`);
  },

  /** Writes the step into the address, so that it can be sent to somebody. A frame in a notebook has no address. */
  updateAddress() {
    if (location.protocol === "about:") return;
    const hash = `#${this.episode ? `e=${this.episode}&` : ""}t=${this.now()}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
  },

  play(on) {
    clearInterval(this.timer);
    this.timer = null;
    byId("play").textContent = on ? "❚❚" : "▶";
    byId("play").setAttribute("aria-label", on ? "Pause" : "Play");
    if (!on) return;
    if (this.now() >= this.last()) this.go(0);
    const step = () => (this.now() >= this.last() ? this.play(false) : this.go(this.now() + 1));
    this.timer = setInterval(step, 1000 / Number(byId("speed").value));
  },

  nextDecision(back) {
    const { decisions } = this.record.audit;
    const later = () => decisions.find((step) => step > this.t) ?? decisions[0];
    const next = back ? decisions.findLast((step) => step < this.t) : later();
    if (next !== undefined) this.go(next);
  },

  /** Lays out what depends on the width and the colours. */
  layOut() {
    this.timelines.forEach((timeline) => timeline.layOut());
    const colours = HEAT_WEIGHTS.map((weight, i) => `${heat(weight)} ${Math.round((100 * i) / 3)}%`);
    const bar = element("i");
    bar.style.background = `linear-gradient(to right, ${colours})`;
    byId("scale").replaceChildren("live, attention 0", bar, "1");
    this.charts.build();
    this.paint();
  },

  async open(index, t) {
    this.play(false);
    const asked = this.asked = { index };
    const data = await unpack(byId(`episode-${index}`).textContent);
    const { record } = data;
    const film = data.film && (await Film.of(data.film));
    const seen = await Seen.of(data.seen);
    const compare = data.without ? await Comparison.of(data.without, record.without) : null;
    if (this.asked !== asked) return; // another episode was asked for in the meantime
    Object.assign(this, { episode: index, record, film, seen, compare });
    Object.assign(this, { chosen: null, marked: null, layer: "all", head: "max" });
    this.beyond = 0;
    byId("episode").value = index;
    byId("thumbs").replaceChildren();
    delete byId("effect").dataset.state;
    this.buildTimelines();
    describe(this);
    // Room for the spans beyond the end of the episode, but no more than a fifth of it.
    const last = Math.max(...this.timelines.map((timeline) => timeline.last));
    this.until = Math.max(record.steps + 1, Math.min(last, record.steps * 1.2));
    this.charts ??= new Charts(byId("charts"), this);
    buildAudit(this);
    this.chosen = record.story.written; // the story's memory
    this.setStep(t ?? record.story.step);
    this.layOut();
    document.documentElement.dataset.ready = index;
    document.documentElement.dataset.milliseconds = Math.round(performance.now()); // to the first picture
  },

  buildTimelines() {
    const { layers, steps } = this.record, box = byId("timelines");
    box.replaceChildren();
    this.timelines = layers.map((layer, i) => {
      const holder = element("div"), canvas = element("canvas");
      holder.append(element("h3", "", `Layer ${i + 1} of ${layers.length}`), canvas);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Lives of the memories of layer ${i + 1}`);
      box.append(holder);
      return timelineOf(canvas, layer, i, steps, this);
    });
  },
};

/** A number with four digits behind the point, or four significant ones if it is small. */
const trimmed = (number) => {
  const value = number ?? NaN;
  return String(Number(Math.abs(value) < 0.1 ? value.toPrecision(4) : value.toFixed(4)));
};

/** What is known of an observation, for the tip at the pointer. */
function tipText(page, written) {
  const lives = page.record.layers.map((layer, i) => {
    const steps = Math.max(1, layer.end[written] - written);
    const attention = two(layer.peak[written]);
    return `layer ${i + 1}: ${spanText(layer, written)}${steps} steps live, at most ${attention} attention`;
  });
  return [`observation of step ${written}${showsText(page.record, written)}`, ...lives].join("\n");
}

/** The data of an episode: JSON, compressed, in base64. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** The texts that do not change while an episode is shown. */
function describe(page) {
  const { record } = page, title = byId("title");
  const [result, ...details] = record.outcome.split(", ");
  byId("headline").textContent = record.story.headline;
  byId("detail").textContent = record.story.detail;
  title.className = { success: "good", failure: "bad" }[result] ?? ""; // a share of success has no colour
  title.replaceChildren(`${record.env}: `, element("b", "", result), details.length ? `, ${details.join(", ")}` : "");
  byId("about").textContent = aboutTexts(record).join(" · ");
  const hasSlots = record.layers.length > 0;
  for (const id of ["memory", "lives", "audit"]) byId(id).hidden = !hasSlots;
  byId("frame").hidden = !page.film;
  byId("place").hidden = !page.film || !hasSlots;
  byId("decision").hidden = !record.audit.decisions.length;
  describeActions(record);
  buildEntries(record);
  if (!hasSlots) return;
  byId("layer").replaceChildren(new Option("all", "all"), ...record.layers.map((_, i) => new Option(i + 1, i)));
  const heads = Array.from({ length: record.layers[0].heads }, (_, h) => new Option(`head ${h + 1}`, h));
  byId("head").replaceChildren(new Option("all heads, the largest", "max"), ...heads);
  const isDense = page.timelines.some((timeline) => timeline.dense);
  byId("lives-note").textContent = isDense ? densityNote(page.timelines) : lifeNote(record.layers);
}

/** How the episode was played, and the last step's info. */
function aboutTexts(record) {
  const info = Object.entries(record.info).filter(([key]) => key !== "is_success").slice(0, 6);
  const infoTexts = info.map(([key, value]) => {
    return `${key.replaceAll("_", " ")}: ${typeof value === "number" ? trimmed(value) : value}`;
  });
  const actions = record.deterministic ? "the most likely actions" : "actions drawn from the policy";
  const texts = [record.policy, `memory ${record.memory}`, `seed ${record.seed}, ${actions}`, ...infoTexts];
  if (record.not_drawn) texts.push(`the world could not be drawn (${record.not_drawn})`);
  return texts;
}

/** How to read the shades. */
function densityNote(timelines) {
  const { size } = timelines.find((timeline) => timeline.dense);
  const row = size > 1 ? `${size} observations, written one after the other` : "an observation";
  return [
    `Each row is ${row}, the earliest on top (numbers on the left: the step of writing).`,
    "The greyer a row, the more of its observations are live at that step.",
    `Colours are the attention that they receive there, from ${MIN_LINE} on.`,
    "Lines lead to what is attended to at this moment. Ticks below are decisions.",
  ].join(" ");
}

/** How to read the bars of a memory kind. */
function lifeNote(layers) {
  const layer = layers[0], begin = "One bar per observation, from the step it is written to the step it is forgotten";
  const end = "Live ones are coloured by the attention that they receive at this moment. Ticks below are decisions.";
  if (layer.merged) {
    return `${begin}. It thins where ${layer.merge_size} of them are compressed into one memory. ${end}`;
  }
  if (layer.span) {
    return `${begin}. The bluish part behind it is the predicted span, the rest the ramp over which it fades. ${end}`;
  }
  if (layer.head_spans) {
    const headSpans = layers.map(({ head_spans }, i) => `layer ${i + 1}: ${head_spans.map(Math.round).join(", ")}`);
    const spans = headSpans.join("; ");
    return `${begin}: what the head with the longest span reaches (spans of the heads, ${spans}). ${end}`;
  }
  return `${begin}${layer.window ? `: a window of ${layer.window} steps that slides along` : ""}. ${end}`;
}

/** Episode and step of an address; undefined for what it does not name. */
function parseAddress(address = location.href) {
  const values = new URLSearchParams(new URL(address).hash.slice(1));
  const number = (key) => (/^\d+$/.test(values.get(key) ?? "") ? Number(values.get(key)) : undefined);
  return { e: number("e"), t: number("t") };
}

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  const optionValue = (value) => (["all", "max"].includes(value) ? value : Number(value));
  on("slider", "input", (event) => page.go(Number(event.target.value)));
  on("back", "click", () => page.go(page.now() - 1));
  on("forth", "click", () => page.go(page.now() + 1));
  on("compare", "click", () => { page.compare.on = !page.compare.on; page.go(page.now()); });
  on("play", "click", () => page.play(!page.timer));
  on("decision", "click", () => page.nextDecision(false));
  on("save", "click", () => savePicture(page));
  on("speed", "change", () => page.timer && page.play(true));
  on("sort", "change", (event) => { page.sort = event.target.value; page.draw(); });
  on("layer", "change", (event) => { page.layer = optionValue(event.target.value); page.draw(); });
  on("head", "change", (event) => { page.head = optionValue(event.target.value); page.draw(); });
  on("episode", "change", (event) => page.open(Number(event.target.value)));
  addEventListener("hashchange", (event) => {
    const { e, t } = parseAddress(event.newURL); // the page may have written its own over it since
    const isShown = e === page.asked.index && e === page.episode;
    if (e !== undefined && !isShown && byId(`episode-${e}`)) page.open(e, t);
    else if (t !== undefined && t !== page.now()) page.go(t);
  });
  addEventListener("keydown", pressKey);
  let wait = null, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // on a phone the address bar changes the height only
    width = innerWidth;
    clearTimeout(wait);
    wait = setTimeout(() => page.layOut(), 80);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.layOut());
}

function pressKey(event) {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = event.shiftKey ? 10 : 1;
  const actions = {
    ArrowLeft: () => page.go(page.now() - steps),
    ArrowRight: () => page.go(page.now() + steps),
    Home: () => page.go(0),
    End: () => page.go(page.last()),
    d: () => page.nextDecision(false),
    D: () => page.nextDecision(true),
    s: () => savePicture(page),
  };
  if (!["BUTTON", "SUMMARY"].includes(event.target.tagName)) actions[" "] = () => page.play(!page.timer);
  if (!(event.key in actions)) return;
  event.preventDefault();
  actions[event.key]();
}

async function begin() {
  const list = JSON.parse(byId("list").textContent);
  byId("episodes").hidden = list.length < 2;
  const options = list.map(({ seed, outcome }, i) => new Option(`${i + 1}. seed ${seed}: ${outcome}`, i));
  byId("episode").replaceChildren(...options);
  buildSummary(JSON.parse(byId("summary-data").textContent), list.length);
  byId("address-note").hidden = location.protocol === "about:";
  listen();
  const { e, t } = parseAddress(), index = e !== undefined && e < list.length ? e : 0;
  await page.open(index, t);
}

begin().catch((error) => {
  byId("title").textContent = `The page could not be read: ${error.message}`;
  throw error;
});
