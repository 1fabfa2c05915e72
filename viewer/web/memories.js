"use strict";
// What is in memory now, as totals and thumbnails, and what became of the decisions without the chosen memory.

const MAX_THUMBS = 48;
const MAX_AUDIT_ROWS = 200;
const MIN_SHIFT = 0.05; // a smaller change is not reported
const EFFECTS = ["direct_removed", "direct_swapped", "total_removed", "total_swapped"];
const TOTAL = [
  ["total_removed", "had this observation never been remembered"],
  ["total_swapped", "had the agent seen the opposite fact"],
];
const DIRECT = [
  ["direct_removed", "this slot alone removed"],
  ["direct_swapped", "this slot alone as if the fact were the opposite"],
];
/** The predicted span of an observation's memory, followed by a comma. Empty for kinds without spans. */
function spanText(layer, written) {
  if (!layer.span) return "";
  return layer.span[written] === null ? "kept for good, " : `span ${Math.round(layer.span[written])}, `;
}
/** What an observation shows, after a colon. Empty if it has no name. */
const showsText = (record, written) => {
  const text = record.shows.texts[record.shows.which[written]];
  return text && `: ${text}`;
};
const two = (number) => (number ?? NaN).toFixed(2);

/**
 * The observations that are live at the page's step, in one layer or in all: a list of {written, weight, left, layers,
 * part}. left: remaining steps. part: whether it is only a part of a compressed memory.
 */
function liveMemories(page) {
  const memories = new Map();
  page.record.layers.forEach((layer, i) => {
    if (page.layer !== "all" && page.layer !== i) return;
    for (let w = 0; w <= page.t; w++) {
      if (layer.end[w] <= page.t) continue;
      const memory = memories.get(w) ?? { written: w, weight: 0, left: 0, layers: [], part: true };
      memory.weight = Math.max(memory.weight, page.weights[i].get(w) ?? 0);
      memory.left = Math.max(memory.left, (layer.expires[w] ?? Infinity) - page.t);
      memory.layers.push(i + 1);
      memory.part = memory.part && layer.merged !== null && layer.merged[w] <= page.t;
      memories.set(w, memory);
    }
  });
  const order = {
    attention: (a, b) => b.weight - a.weight || b.left - a.left,
    life: (a, b) => b.left - a.left || a.written - b.written,
    age: (a, b) => a.written - b.written,
  }[page.sort];
  return [...memories.values()].sort(order);
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
  const box = byId("thumbs"), all = liveMemories(page), memories = all.slice(0, MAX_THUMBS);
  const focus = document.activeElement?.dataset?.written;
  const oldThumbs = new Map([...box.children].map((node) => [Number(node.dataset.written), node]));
  const thumbs = memories.map((memory) => {
    const node = oldThumbs.get(memory.written) ?? newThumb(page, memory.written);
    updateThumb(page, node, memory);
    return node;
  });
  if (thumbs.length !== box.children.length || thumbs.some((node, i) => node !== box.children[i])) {
    box.replaceChildren(...thumbs);
    if (focus !== undefined) box.querySelector(`[data-written="${focus}"]`)?.focus({ preventScroll: true });
  }
  const hidden = all.length - memories.length;
  const note = all.some((memory) => memory.part) ? "▤: lives on as a part of a compressed memory." : "";
  byId("more").textContent = (hidden > 0 ? `and ${hidden} more. ` : "") + note;
}

function updateThumb(page, node, memory) {
  const { written, weight, left, layers, part } = memory;
  const layersText = page.record.layers.length > 1 && page.layer === "all" ? ` · L${layers.join("+")}` : "";
  const life = left === Infinity ? "no end" : `${left} left`;
  node.querySelector(".weight i").style.cssText = `width:${Math.round(100 * weight)}%;background:${heat(weight)}`;
  node.querySelector(".life").textContent = written === page.t ? "now" : `${life}${layersText}`;
  node.querySelector(".number").textContent = `att. ${two(weight)}`;
  node.classList.toggle("marked", written === page.marked);
  node.classList.toggle("chosen", written === page.chosen);
  node.setAttribute("aria-pressed", written === page.chosen);
  node.setAttribute("aria-label", `Observation of step ${written}${part ? ", part of a compressed memory" : ""}`);
  node.querySelector(".step").textContent = `${part ? "▤ " : ""}step ${written}`;
}

function newThumb(page, written) {
  const node = element("button", "thumb");
  node.dataset.written = written;
  node.append(element("canvas"), element("b", "step"));
  const weight = element("span", "weight");
  weight.append(element("i"));
  node.append(weight, element("span", "number"), element("span", "life soft"));
  page.seen.draw(node.firstChild, written);
  node.addEventListener("pointerenter", () => page.point(written));
  node.addEventListener("pointerleave", () => page.point(null));
  node.addEventListener("focus", () => page.point(written));
  node.addEventListener("blur", () => page.point(null));
  node.addEventListener("click", () => page.choose(written));
  return node;
}

/** The chosen memory, its state now, and what its removal did at the next decision (or at the last one). */
function drawChosen(page) {
  const box = byId("effect"), state = [page.episode, page.chosen, page.t, page.head].join();
  if (box.dataset.state === state) return; // so that the element with the focus keeps it
  const hasFocus = document.activeElement.tagName === "SUMMARY";
  box.dataset.state = state;
  fillChosen(page, box);
  if (hasFocus) box.querySelector("summary")?.focus({ preventScroll: true });
}

function fillChosen(page, box) {
  const { record, t, chosen } = page;
  if (chosen === null) {
    const texts = record.layers.length ? ["Choose a memory: a thumbnail or a bar."] : noSlotsTexts(record, t);
    box.replaceChildren(...texts.map((text) => element("p", "note", text)));
    return;
  }
  const subject = element("div", "subject"), picture = element("canvas"), texts = element("div");
  page.seen.draw(picture, chosen);
  texts.append(element("b", "", `Observation of step ${chosen}${showsText(record, chosen)}`));
  record.layers.forEach((layer, i) => {
    const span = spanText(layer, chosen);
    const life = layer.end[chosen] >= record.steps ? "live to the last step" : `gone at step ${layer.end[chosen]}`;
    const isLive = chosen <= t && layer.end[chosen] > t;
    const attention = isLive ? `attention now ${two(page.weights[i].get(chosen) ?? 0)}` : "not live now";
    texts.append(element("p", "note", `layer ${i + 1}: ${span}${life}; ${attention}`));
  });
  subject.append(picture, texts);
  const rows = record.audit.memories.filter((row) => row.written === chosen);
  const next = rows.find((row) => row.step >= t) ?? rows.at(-1);
  const decisionRows = next ? rows.filter((row) => row.step === next.step) : [];
  box.replaceChildren(subject, ...(decisionRows.length ? effectsOf(page, decisionRows) : []));
  if (!rows.length) box.append(element("p", "note", unmeasured(record)));
}

function unmeasured(record) {
  if (!record.audit.decisions.length) return "Nothing to measure: no step at which memory decides was found.";
  return "Not measured: it is not among the most attended at a decision. visualize.py --audit K measures K of them.";
}

/** Paragraphs about a memory that has no slot for each observation. */
function noSlotsTexts(record, t) {
  const policy = `This policy (${record.memory})`;
  if (!record.state_bytes) {
    return [`${policy} has no memory: it chose every action from the observation of that step alone.`];
  }
  const distribution = record.continuous ? "distribution of actions" : "action probabilities";
  const shift = `At step ${t} the ${distribution} would shift by ${two(record.audit.influence[t])}`;
  return [
    `${shift} if the memory were emptied (0: not at all, 1: entirely).`,
    `${policy} remembers in a state of ${record.state_bytes} bytes, in which observations cannot be told apart.`,
  ];
}

/** What became of a decision without the chosen memory. rows: of that decision, one for each layer. */
function effectsOf(page, rows) {
  const { record } = page, row = rows[0];
  const verb = record.deterministic ? "chose" : "most likely chose";
  const heading = element("h3", "", `Step ${row.step}: the agent ${verb} ${nameOf(record, row.base.action)} `);
  const jump = element("button", "", "go there");
  jump.addEventListener("click", () => page.go(row.step));
  if (page.t !== row.step) heading.append(jump);
  const key = element("p", "note", record.continuous ? "means " : "probabilities ");
  key.append(element("i", "key"), "as it was", element("i", "key other"), "as it would have been");
  const slots = element("details"), summary = element("summary", "", "slot by slot, at this step only");
  slots.open = page.slots;
  // The event "toggle" would come later, and only while the element is on the page.
  summary.addEventListener("click", () => { page.slots = !slots.open; });
  slots.append(summary, ...rows.flatMap((slot) => [
    element("p", "note", `layer ${slot.layer + 1}, attention ${two(slot.attention)}`),
    ...verdicts(record, slot, DIRECT),
  ]));
  return [heading, ...verdicts(record, row, TOTAL), key, slots];
}

function verdicts(record, row, effects) {
  return effects.filter(([name]) => row[name]).map(([name, condition]) => {
    const effect = row[name], flips = isAnother(record, row.base, effect), isSmall = effect.shift < MIN_SHIFT;
    const verdict = element("div", `verdict ${flips ? "flips" : isSmall ? "none" : ""}`);
    const action = nameOf(record, effect.action);
    verdict.append(element("b", "", flips ? `${action} instead` : isSmall ? "no difference" : `still ${action}`));
    const valueChange = `${effect.value_change < 0 ? "−" : "+"}${two(Math.abs(effect.value_change))}`;
    verdict.append(` ${condition}: shift ${two(effect.shift)}, value ${valueChange}`);
    verdict.append(pairs(record, distributionOf(row.base), distributionOf(effect)));
    return verdict;
  });
}

/** The numbers of two distributions side by side. Probabilities below MIN_SHIFT are left out. */
function pairs(record, base, changed) {
  const pair = element("div", "pair");
  record.action_names.forEach((name, a) => {
    const both = [base[a], changed[a]];
    if (!record.continuous && Math.max(...both) < MIN_SHIFT) return;
    const bars = element("div", "two");
    for (const number of both) {
      const bar = element("i");
      bar.style.width = `${100 * (record.continuous ? placeOf(record, a, number) : number)}%`;
      bars.append(bar);
    }
    bars.title = both.map(record.continuous ? short : two).join(" → ");
    pair.append(element("span", "", record.continuous ? `${name}: ${bars.title}` : name), bars);
  });
  if (record.continuous) pair.classList.add("means");
  return pair;
}

/**
 * Whether an effect's action differs from that of `base`. Real numbers always differ a little, so for them the
 * distribution must have shifted too.
 */
function isAnother(record, base, effect) {
  return effect.action !== base.action && (!record.continuous || effect.shift >= MIN_SHIFT);
}

function buildAudit(page) {
  const { record } = page, { memories } = record.audit, table = byId("audit-table");
  byId("audit-note").textContent = auditNote(record);
  table.replaceChildren();
  if (!memories.length) return;
  const head = element("tr");
  const names = ["decision", "action", "memory", "layer", "attention"];
  names.push("direct, removed", "direct, swapped", "total, removed", "total, swapped");
  for (const name of names) head.append(element("th", "", name));
  table.append(head, ...memories.slice(0, MAX_AUDIT_ROWS).map((row) => auditRow(page, row)));
}

function auditNote(record) {
  const { memories, decisions } = record.audit;
  const count = `${decisions.length} decision${decisions.length === 1 ? "" : "s"}`;
  if (!decisions.length) return "No step at which memory decides was found.";
  if (!memories.length) return `${count}, no memories measured.`;
  const distribution = record.continuous ? "distribution of actions" : "action probabilities";
  const sentences = [
    `${count}; the memories attended to most at each.`,
    `Shift of the ${distribution} (0 to 1), and the action taken instead.`,
    "Direct: one slot of one layer; total: with all that descends from it.",
  ];
  const total = memories.length;
  if (total > MAX_AUDIT_ROWS) sentences.push(`The first ${MAX_AUDIT_ROWS} rows of ${total}; --json has all.`);
  return sentences.join(" ");
}

function auditRow(page, row) {
  const { record } = page;
  const line = element("tr"), go = element("td"), button = element("button", "", `step ${row.step}`);
  line.dataset.step = row.step;
  line.dataset.written = row.written;
  button.addEventListener("click", () => { page.choose(row.written); page.go(row.step); });
  go.append(button);
  const texts = [nameOf(record, row.base.action), `step ${row.written}`, row.layer + 1, two(row.attention)];
  line.append(go, ...texts.map((text) => element("td", "", text)));
  for (const name of EFFECTS) {
    const effect = row[name], flips = effect && isAnother(record, row.base, effect);
    const action = flips ? ` → ${nameOf(record, effect.action)}` : "";
    line.append(element("td", flips ? "flips" : "", effect ? `${two(effect.shift)}${action}` : "–"));
  }
  return line;
}

function markAudit(page) {
  for (const line of byId("audit-table").querySelectorAll("tr[data-step]")) {
    line.classList.toggle("here", Number(line.dataset.step) === page.t && Number(line.dataset.written) === page.chosen);
  }
}
