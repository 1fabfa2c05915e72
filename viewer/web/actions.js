"use strict";
// Actions, their distributions, and the parts of the observation beside pictures, for every kind of space.

const MAX_ROWS = 14; // of a distribution; more of them scroll
const MAX_DIGITS = 8; // numbers of an entry that are shown as digits

/** The numbers of a distribution of actions: probabilities, or the means of real numbers. */
const distributionOf = (row) => row.probabilities ?? row.means;
/** The name of an answer's action, which is a number of `action_names` or a text. */
const nameOf = (record, action) => (typeof action === "number" ? record.action_names[action] : action);
function actionText(record, t) {
  return record.action_texts ? record.action_texts[t] : record.action_names[record.actions[t]];
}
/** A number of three significant digits. */
function short(number) {
  if (number == null) return "–";
  return String(Math.abs(number) >= 1000 ? Math.round(number) : Number(number.toPrecision(3)));
}

/** Where a real number lies, 0 to 1, between its bounds. A missing bound is the extreme of the episode. */
function placeOf(record, i, number) {
  const [low, high] = record.ranges[i];
  return high > low ? Math.min(1, Math.max(0, ((number ?? low) - low) / (high - low))) : 0.5;
}

function extremes(numbers) {
  const finite = numbers.filter((number) => number != null);
  return [finite.reduce((a, b) => Math.min(a, b), Infinity), finite.reduce((a, b) => Math.max(a, b), -Infinity)];
}

/** The texts about actions, which do not change while an episode is shown. */
function describeActions(record) {
  const note = byId("chances-note"), chances = byId("chances");
  note.hidden = !record.continuous;
  chances.classList.toggle("many", record.action_names.length > MAX_ROWS);
  chances.removeAttribute("tabindex");
  if (record.action_names.length > MAX_ROWS) chances.tabIndex = 0; // it scrolls
  chances.setAttribute("aria-label", record.continuous ? "Means of the action's numbers" : "Action probabilities");
  if (!record.continuous) return;
  note.replaceChildren(element("i", "key mean"), "mean of each number, ", element("i", "key done"), "what was done");
  record.ranges = record.action_bounds.map(([low, high], i) => {
    const [smallest, largest] = extremes([...record.means, ...record.actions].map((row) => row[i]));
    return [low ?? smallest, high ?? largest];
  });
}

function drawChances(record, t) {
  const numbers = distributionOf(record)[t], places = record.taken ? record.taken[t] : [record.actions[t]];
  byId("chances").replaceChildren(...record.action_names.map((name, a) => {
    const isTaken = !record.continuous && places.includes(a);
    const row = element("div", `chance${isTaken ? " taken" : ""}`), track = element("div", "track"), bar = element("i");
    track.append(bar);
    if (record.continuous) {
      const mark = element("i");
      track.classList.add("means");
      bar.style.left = `${100 * placeOf(record, a, numbers[a])}%`;
      mark.style.left = `${100 * placeOf(record, a, record.actions[t][a])}%`;
      track.append(mark);
      const range = record.ranges[a].map(short).join(" to ");
      track.title = `mean ${short(numbers[a])}, done ${short(record.actions[t][a])}, from ${range}`;
    } else {
      bar.style.width = `${100 * numbers[a]}%`;
    }
    const label = element("span", "name", `${name}${isTaken ? " ◂" : ""}`);
    label.title = name;
    row.append(label, track, element("span", "number", record.continuous ? short(numbers[a]) : two(numbers[a])));
    return row;
  }));
}

/** The entries of the observation beside pictures: the name of each, and a place for its value. */
function buildEntries(record) {
  const box = byId("entries"), entries = record.entries ?? [];
  box.hidden = !entries.length;
  box.replaceChildren(...entries.flatMap((entry) => {
    if (entry.values) entry.ranges = entry.labels.map((_, i) => extremes(entry.values.map((row) => row[i])));
    const kind = entry.values && entry.kind !== "mask" ? "cells" : "text";
    return [element("span", "name", entry.name), element("div", kind)];
  }));
}

function drawEntries(record, t) {
  const places = byId("entries").children;
  (record.entries ?? []).forEach((entry, i) => {
    const place = places[2 * i + 1];
    if (entry.texts) place.textContent = entry.texts[entry.which[t]];
    else if (!entry.values) place.textContent = `${entry.count} numbers`;
    else if (entry.kind === "mask") place.textContent = maskText(entry, t);
    else drawNumbers(place, entry, t);
  });
}

function maskText(entry, t) {
  const forbidden = entry.labels.filter((_, i) => !entry.values[t][i]);
  return forbidden.length ? `not allowed: ${forbidden.join(", ")}` : "every action is allowed";
}

/** The numbers of an entry: the name of a Discrete's value, features with labels, or cells. */
function drawNumbers(place, entry, t) {
  const numbers = entry.values[t];
  if (entry.value_names) {
    place.textContent = entry.value_names[numbers[0] - entry.start];
    return;
  }
  if (entry.named) drawFeatures(place, entry, numbers);
  else drawCells(place, entry, numbers);
  place.title = numbers.map((number, i) => `${entry.labels[i]}: ${short(number)}`).join("\n");
}

/** Each number with its name, and a bar from its smallest to its largest of the episode. */
function drawFeatures(place, entry, numbers) {
  place.className = "features";
  place.replaceChildren(...numbers.flatMap((number, i) => {
    const [low, high] = entry.ranges[i], track = element("span", "track"), bar = element("i");
    bar.style.width = `${high > low ? Math.round((100 * (number - low)) / (high - low)) : 0}%`;
    track.append(bar);
    return [element("span", "label", entry.labels[i]), track, element("span", "number", short(number))];
  }));
}

/** A cell for each number, pale for its smallest of the episode and full for its largest. A few also as digits. */
function drawCells(place, entry, numbers) {
  place.replaceChildren(...numbers.map((number, i) => {
    const [low, high] = entry.ranges[i], cell = element("i"), part = high > low ? (number - low) / (high - low) : 0;
    cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(100 * part)}%, var(--card))`;
    return cell;
  }));
  if (numbers.length <= MAX_DIGITS) place.append(element("span", "", numbers.map(short).join("  ")));
}
