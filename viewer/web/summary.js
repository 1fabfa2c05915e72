"use strict";
// Over all episodes: the kinds of observation that are kept the most, and those that are forgotten the most.

/** count: how many episodes are on the page. */
function buildSummary(summary, count) {
  const section = byId("summary"), table = byId("summary-table");
  section.hidden = summary.episodes < 2 || !summary.most.length;
  if (section.hidden) return;
  byId("summary-title").textContent = `What is kept, over ${summary.episodes.toLocaleString("en")} episodes`;
  const sentences = [
    `${summary.observations.toLocaleString("en")} observations, by what they show.`,
    "Span: for how many steps one would be seen if the episode went on for ever.",
    "Mattered: how often the agent would have acted otherwise without one, of the times that this was measured.",
  ];
  if (count < summary.episodes) sentences.push(`The first ${count} episodes are on this page.`);
  byId("summary-note").textContent = sentences.join(" ");
  const head = element("tr");
  const names = ["observation", "seen", "kept for good", "mean span of the others", "mean steps live", "mattered"];
  for (const name of names) head.append(element("th", "", name));
  table.replaceChildren(head, ...summary.most.map(kindRow));
  if (summary.least.length) {
    const line = element("tr"), cell = element("td", "note", "the most forgotten");
    cell.colSpan = 6;
    line.append(cell);
    table.append(line, ...summary.least.map(kindRow));
  }
  byId("agreement").textContent = summary.agreement ?? "";
}

function kindRow(kind) {
  const line = element("tr"), number = (value) => value.toLocaleString("en");
  const tenths = (value) => value.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const mattered = kind.measured ? `${number(kind.mattered)} of ${number(kind.measured)}` : "–";
  const span = kind.mean_span === null ? "–" : tenths(kind.mean_span);
  const keptForGood = `${tenths(100 * kind.kept_for_good)}%`;
  const cells = [kind.shows, number(kind.count), keptForGood, span, tenths(kind.mean_steps_live), mattered];
  line.append(...cells.map((text) => element("td", "", text)));
  return line;
}
