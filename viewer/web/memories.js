"use strict";
// What is in memory now: totals and thumbnails; and what became of the decisions without the chosen one.

const MOST_THUMBS = 48;
const LEAST_SHIFT = 0.05; // below it nothing is said to have changed
const EFFECTS = ["direct_removed", "direct_swapped", "total_removed", "total_swapped"];
const TOTAL = [
  ["total_removed", "had this observation never been remembered"],
  ["total_swapped", "had the agent seen the opposite fact"],
];
const DIRECT = [
  ["direct_removed", "this slot alone removed"],
  ["direct_swapped", "this slot alone as if the fact were the opposite"],
];
/** The predicted span of an observation's memory, with a comma behind it; empty for kinds without spans. */
const spanText = (layer, written) => !layer.span ? "" : layer.span[written] === null ? "kept for good, " : `span ${Math.round(layer.span[written])}, `;
/** What an observation shows, with a colon before it; empty where it has no name. */
const showsText = (record, written) => {
  const text = record.shows.texts[record.shows.which[written]];
  return text && `: ${text}`;
};
const two = (number) => (number ?? NaN).toFixed(2);

/** What is live at the page's moment: a list of {written, weight, left, layers}, of one layer or of all. */
function remembered(page) {
  const found = new Map();
  page.record.layers.forEach((layer, i) => {
    if (page.layer !== "all" && page.layer !== i) return;
    for (let w = 0; w <= page.t; w++) {
      if (layer.end[w] <= page.t) continue;
      const one = found.get(w) ?? { written: w, weight: 0, left: 0, layers: [], part: true };
      one.weight = Math.max(one.weight, page.weights[i].get(w) ?? 0);
      one.left = Math.max(one.left, (layer.expires[w] ?? Infinity) - page.t);
      one.layers.push(i + 1);
      one.part = one.part && layer.merged !== null && layer.merged[w] <= page.t;
      found.set(w, one);
    }
  });
  const order = {
    attention: (a, b) => b.weight - a.weight || b.left - a.left,
    life: (a, b) => b.left - a.left || a.written - b.written,
    age: (a, b) => a.written - b.written,
  }[page.sort];
  return [...found.values()].sort(order);
}

function drawTotals(page) {
  const box = byId("totals"), { record, t } = page;
  box.replaceChildren(...["", "observations seen", "live now", "forgotten"].map((text) => element("span", "", text)));
  record.layers.forEach((layer, i) => {
    box.append(element("span", "", `layer ${i + 1}`));
    for (const number of [t + 1, layer.live[t], t + 1 - layer.remembered[t]]) box.append(element("b", "", number));
  });
}

function drawThumbs(page) {
  const box = byId("thumbs"), all = remembered(page), shown = all.slice(0, MOST_THUMBS);
  const focused = document.activeElement?.dataset?.written;
  const nodes = new Map([...box.children].map((node) => [Number(node.dataset.written), node]));
  const wanted = shown.map((one) => {
    const node = nodes.get(one.written) ?? newThumb(page, one.written);
    const several = page.record.layers.length > 1 && page.layer === "all" ? ` · L${one.layers.join("+")}` : "";
    const now = one.written === page.t;
    node.querySelector(".weight i").style.cssText = `width:${Math.round(100 * one.weight)}%;background:${heat(one.weight)}`;
    node.querySelector(".told").textContent = now ? "now" : `${one.left === Infinity ? "no end" : `${one.left} left`}${several}`;
    node.querySelector(".number").textContent = `att. ${two(one.weight)}`;
    node.classList.toggle("marked", one.written === page.marked);
    node.classList.toggle("chosen", one.written === page.chosen);
    node.setAttribute("aria-pressed", one.written === page.chosen);
    node.setAttribute("aria-label", `Observation of step ${one.written}${one.part ? ", part of a compressed memory" : ""}`);
    node.querySelector(".step").textContent = `${one.part ? "▤ " : ""}step ${one.written}`;
    return node;
  });
  if (wanted.length !== box.children.length || wanted.some((node, i) => node !== box.children[i])) {
    box.replaceChildren(...wanted);
    if (focused !== undefined) box.querySelector(`[data-written="${focused}"]`)?.focus({ preventScroll: true });
  }
  const hidden = all.length - shown.length, parts = all.some((one) => one.part);
  byId("more").textContent = (hidden > 0 ? `and ${hidden} more. ` : "") + (parts ? "▤: lives on as a part of a compressed memory." : "");
}

function newThumb(page, written) {
  const node = element("button", "thumb");
  node.dataset.written = written;
  node.append(element("canvas"), element("b", "step"));
  const weight = element("span", "weight");
  weight.append(element("i"));
  node.append(weight, element("span", "number"), element("span", "told soft"));
  page.seen.draw(node.firstChild, written);
  node.addEventListener("pointerenter", () => page.point(written));
  node.addEventListener("pointerleave", () => page.point(null));
  node.addEventListener("focus", () => page.point(written));
  node.addEventListener("blur", () => page.point(null));
  node.addEventListener("click", () => page.choose(written));
  return node;
}

/** Which memory is chosen, what it is now, and what its removal did at the decision that comes next (or was the last). */
function drawChosen(page) {
  const box = byId("effect"), { record, t, chosen } = page, shown = [page.episode, chosen, t, page.head].join();
  if (box.dataset.shown === shown) return; // so that what has the focus keeps it
  const focused = document.activeElement.tagName === "SUMMARY";
  box.dataset.shown = shown;
  fillChosen(page, box);
  if (focused) box.querySelector("summary")?.focus({ preventScroll: true });
}

function fillChosen(page, box) {
  const { record, t, chosen } = page;
  if (chosen === null) {
    const texts = record.layers.length ? ["Choose a memory: a thumbnail or a bar."] : nothing(record, t);
    box.replaceChildren(...texts.map((text) => element("p", "note", text)));
    return;
  }
  const subject = element("div", "subject"), picture = element("canvas"), told = element("div");
  page.seen.draw(picture, chosen);
  told.append(element("b", "", `Observation of step ${chosen}${showsText(record, chosen)}`));
  record.layers.forEach((layer, i) => {
    const span = spanText(layer, chosen);
    const life = layer.end[chosen] >= record.steps ? "live to the last step" : `gone at step ${layer.end[chosen]}`;
    const live = chosen <= t && layer.end[chosen] > t;
    told.append(element("p", "note", `layer ${i + 1}: ${span}${life}; ${live ? `attention now ${two(page.weights[i].get(chosen) ?? 0)}` : "not live now"}`));
  });
  subject.append(picture, told);
  const rows = record.audit.memories.filter((row) => row.written === chosen);
  const next = rows.find((row) => row.step >= t) ?? rows.at(-1);
  const here = next ? rows.filter((row) => row.step === next.step) : [];
  box.replaceChildren(subject, ...(here.length ? effectsOf(page, here) : []));
  if (!rows.length) box.append(element("p", "note", unmeasured(record)));
}

function unmeasured(record) {
  if (!record.audit.decisions.length) return "Nothing to measure: no step at which memory decides was found.";
  return "Not measured: it is not among those attended to most at a decision. visualize.py --audit K measures K of them.";
}

/** What is told of a memory that is no list of observations, as paragraphs. */
function nothing(record, t) {
  if (!record.state_bytes) return [`This policy (${record.memory}) has no memory: it chose every action from the observation of that step alone.`];
  const moved = record.continuous ? "distribution of actions" : "action probabilities";
  return [
    `At step ${t} the ${moved} would shift by ${two(record.audit.influence[t])} if the memory were emptied (0: not at all, 1: entirely).`,
    `This policy (${record.memory}) remembers in a state of ${record.state_bytes} bytes: no observation in it can be told apart.`,
  ];
}

/** What became of a decision without the chosen memory. rows: of that decision, one per layer. */
function effectsOf(page, rows) {
  const { record } = page, row = rows[0];
  const heading = element("h3", "", `Step ${row.step}: the agent ${record.deterministic ? "chose" : "most likely chose"} ${nameOf(record, row.base.action)} `);
  const jump = element("button", "", "go there");
  jump.addEventListener("click", () => page.go(row.step));
  if (page.t !== row.step) heading.append(jump);
  const key = element("p", "note", record.continuous ? "means " : "probabilities ");
  key.append(element("i", "key"), "as it was", element("i", "key other"), "as it would have been");
  const slots = element("details"), summary = element("summary", "", "slot by slot, at this step only");
  slots.open = page.slots;
  summary.addEventListener("click", () => { page.slots = !slots.open; }); // "toggle" would come later, and only while it is shown
  slots.append(summary, ...rows.flatMap((one) => [
    element("p", "note", `layer ${one.layer + 1}, attention ${two(one.attention)}`), ...verdicts(record, one, DIRECT),
  ]));
  return [heading, ...verdicts(record, row, TOTAL), key, slots];
}

function verdicts(record, row, effects) {
  return effects.filter(([name]) => row[name]).map(([name, what]) => {
    const effect = row[name], flips = isAnother(record, row.base, effect), same = effect.shift < LEAST_SHIFT;
    const verdict = element("div", `verdict ${flips ? "flips" : same ? "none" : ""}`);
    verdict.append(element("b", "", flips ? `${nameOf(record, effect.action)} instead` : same ? "no difference" : `still ${nameOf(record, effect.action)}`));
    verdict.append(` ${what}: shift ${two(effect.shift)}, value ${effect.value_change < 0 ? "−" : "+"}${two(Math.abs(effect.value_change))}`);
    verdict.append(pairs(record, shownOf(row.base), shownOf(effect)));
    return verdict;
  });
}

/** What is shown of two distributions, side by side: of probabilities those of at least LEAST_SHIFT. */
function pairs(record, base, other) {
  const pair = element("div", "pair");
  record.action_names.forEach((name, a) => {
    const both = [base[a], other[a]];
    if (!record.continuous && Math.max(...both) < LEAST_SHIFT) return;
    const bars = element("div", "two");
    for (const number of both) {
      const bar = element("i");
      bar.style.width = `${100 * (record.continuous ? placeOf(record, a, number) : number)}%`;
      bars.append(bar);
    }
    const [was, would] = both.map(record.continuous ? short : two);
    bars.title = `${was} → ${would}`;
    pair.append(element("span", "", record.continuous ? `${name}: ${bars.title}` : name), bars);
  });
  if (record.continuous) pair.classList.add("means");
  return pair;
}

/** Whether an effect's action is another than that of `base`. Real numbers always differ a little: there only if the distribution has shifted too. */
function isAnother(record, base, effect) {
  return effect.action !== base.action && (!record.continuous || effect.shift >= LEAST_SHIFT);
}

function buildAudit(page) {
  const { record } = page, { memories, decisions } = record.audit, table = byId("audit-table");
  const count = `${decisions.length} decision${decisions.length === 1 ? "" : "s"}`;
  byId("audit-note").textContent = memories.length
    ? `${count}; the memories attended to most at each. Shift of the ${record.continuous ? "distribution of actions" : "action probabilities"} (0 to 1), and the action taken instead. Direct: one slot of one layer; total: with all that descends from it.`
    : decisions.length ? `${count}, no memories measured.` : "No step at which memory decides was found.";
  table.replaceChildren();
  if (!memories.length) return;
  const head = element("tr");
  for (const name of ["decision", "action", "memory", "layer", "attention", "direct, removed", "direct, swapped", "total, removed", "total, swapped"]) head.append(element("th", "", name));
  table.append(head);
  for (const row of memories.slice(0, 200)) {
    const line = element("tr"), go = element("td"), button = element("button", "", `step ${row.step}`);
    line.dataset.step = row.step;
    line.dataset.written = row.written;
    button.addEventListener("click", () => { page.choose(row.written); page.go(row.step); });
    go.append(button);
    line.append(go, ...[nameOf(record, row.base.action), `step ${row.written}`, row.layer + 1, two(row.attention)].map((text) => element("td", "", text)));
    for (const name of EFFECTS) {
      const effect = row[name], flips = effect && isAnother(record, row.base, effect);
      line.append(element("td", flips ? "flips" : "", effect ? `${two(effect.shift)}${flips ? ` → ${nameOf(record, effect.action)}` : ""}` : "–"));
    }
    table.append(line);
  }
  if (memories.length > 200) byId("audit-note").textContent += ` The first 200 rows of ${memories.length}; --json has all.`;
}

function markAudit(page) {
  for (const line of byId("audit-table").querySelectorAll("tr[data-step]")) {
    line.classList.toggle("here", Number(line.dataset.step) === page.t && Number(line.dataset.written) === page.chosen);
  }
}
