"use strict";
// What was done, by what chances, and what was seen beside pictures: for every kind of action and observation.

const MANY_CHANCES = 14; // rows, of which more can be scrolled
const FEW_NUMBERS = 8; // of an entry, which are shown as digits

/** What is shown of a distribution of actions: probabilities, or the means of real numbers. */
const shownOf = (row) => row.probabilities ?? row.means;
/** An answer's action: a number of `action_names`, or a text. */
const nameOf = (record, action) => (typeof action === "number" ? record.action_names[action] : action);
const actionText = (record, t) => (record.action_texts ? record.action_texts[t] : record.action_names[record.actions[t]]);
const short = (number) => (number == null ? "–" : String(Math.abs(number) >= 1000 ? Math.round(number) : Number(number.toPrecision(3))));

/** Where a real number lies, 0 to 1, between its bounds or, where there are none, between the extremes of the episode. */
function placeOf(record, i, number) {
  const [low, high] = record.ranges[i];
  return high > low ? Math.min(1, Math.max(0, ((number ?? low) - low) / (high - low))) : 0.5;
}

function extremes(numbers) {
  const known = numbers.filter((number) => number != null);
  return [known.reduce((a, b) => Math.min(a, b), Infinity), known.reduce((a, b) => Math.max(a, b), -Infinity)];
}

/** What does not change while an episode is shown. */
function describeActions(record) {
  const note = byId("chances-note"), chances = byId("chances");
  note.hidden = !record.continuous;
  chances.classList.toggle("many", record.action_names.length > MANY_CHANCES);
  chances.removeAttribute("tabindex");
  if (record.action_names.length > MANY_CHANCES) chances.tabIndex = 0; // it scrolls
  chances.setAttribute("aria-label", record.continuous ? "Means of the action's numbers" : "Action probabilities");
  if (!record.continuous) return;
  note.replaceChildren(element("i", "key mean"), "mean of each number, ", element("i", "key done"), "what was done");
  record.ranges = record.action_bounds.map(([low, high], i) => {
    const [least, most] = extremes([...record.means, ...record.actions].map((row) => row[i]));
    return [low ?? least, high ?? most];
  });
}

function drawChances(record, t) {
  const now = shownOf(record)[t], done = record.taken ? record.taken[t] : [record.actions[t]];
  byId("chances").replaceChildren(...record.action_names.map((name, a) => {
    const taken = !record.continuous && done.includes(a);
    const row = element("div", `chance${taken ? " taken" : ""}`), track = element("div", "track"), bar = element("i");
    track.append(bar);
    if (record.continuous) {
      const mark = element("i");
      track.classList.add("means");
      bar.style.left = `${100 * placeOf(record, a, now[a])}%`;
      mark.style.left = `${100 * placeOf(record, a, record.actions[t][a])}%`;
      track.append(mark);
      track.title = `mean ${short(now[a])}, done ${short(record.actions[t][a])}, from ${record.ranges[a].map(short).join(" to ")}`;
    } else {
      bar.style.width = `${100 * now[a]}%`;
    }
    const label = element("span", "name", `${name}${taken ? " ◂" : ""}`);
    label.title = name;
    row.append(label, track, element("span", "number", record.continuous ? short(now[a]) : two(now[a])));
    return row;
  }));
}

/** The entries of the observation beside pictures: a name and a place for what it is now. */
function buildEntries(record) {
  const box = byId("entries"), entries = record.entries ?? [];
  box.hidden = !entries.length;
  box.replaceChildren(...entries.flatMap((entry) => {
    if (entry.values) entry.ranges = entry.labels.map((_, i) => extremes(entry.values.map((row) => row[i])));
    return [element("span", "name", entry.name), element("div", entry.values && entry.kind !== "mask" ? "cells" : "text")];
  }));
}

function drawEntries(record, t) {
  const places = byId("entries").children;
  (record.entries ?? []).forEach((entry, i) => {
    const place = places[2 * i + 1];
    if (entry.texts) place.textContent = entry.texts[entry.which[t]];
    else if (!entry.values) place.textContent = `${entry.count} numbers`;
    else if (entry.kind === "mask") place.textContent = allowed(entry, t);
    else drawNumbers(place, entry, t);
  });
}

function allowed(entry, t) {
  const not = entry.labels.filter((_, i) => !entry.values[t][i]);
  return not.length ? `not allowed: ${not.join(", ")}` : "every action is allowed";
}

/** Few numbers as digits; each as a cell, pale for its smallest of the episode and full for its largest. */
function drawNumbers(place, entry, t) {
  const now = entry.values[t];
  if (entry.value_names) {
    place.textContent = entry.value_names[now[0] - entry.start];
    return;
  }
  if (entry.named) drawFeatures(place, entry, now);
  else drawCells(place, entry, now);
  place.title = now.map((number, i) => `${entry.labels[i]}: ${short(number)}`).join("\n");
}

/** Each number by its name, with a bar from its smallest of the episode to its largest. */
function drawFeatures(place, entry, now) {
  place.className = "features";
  place.replaceChildren(...now.flatMap((number, i) => {
    const [low, high] = entry.ranges[i], track = element("span", "track"), bar = element("i");
    bar.style.width = `${high > low ? Math.round((100 * (number - low)) / (high - low)) : 0}%`;
    track.append(bar);
    return [element("span", "label", entry.labels[i]), track, element("span", "number", short(number))];
  }));
}

function drawCells(place, entry, now) {
  place.replaceChildren(...now.map((number, i) => {
    const [low, high] = entry.ranges[i], cell = element("i"), part = high > low ? (number - low) / (high - low) : 0;
    cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(100 * part)}%, var(--card))`;
    return cell;
  }));
  if (now.length <= FEW_NUMBERS) place.append(element("span", "", now.map(short).join("  ")));
}
