"use strict";
// Over all episodes: the observations that are kept the most, and those that are forgotten the most.

/** told: the page's summary; paged: how many episodes are on the page. */
function buildSummary(told, paged) {
  const section = byId("summary"), table = byId("summary-table");
  section.hidden = told.episodes < 2 || !told.most.length;
  if (section.hidden) return;
  const some = paged < told.episodes ? ` The first ${paged} episodes are on this page.` : "";
  byId("summary-title").textContent = `What is kept, over ${told.episodes.toLocaleString("en")} episodes`;
  byId("summary-note").textContent = `${told.observations.toLocaleString("en")} observations, by what they show. Span: for how many steps one would be seen if the episode went on for ever. Mattered: how often the agent would have acted otherwise without one, of the times that this was measured.${some}`;
  const head = element("tr");
  for (const name of ["observation", "seen", "kept for good", "mean span of the others", "mean steps live", "mattered"]) head.append(element("th", "", name));
  table.replaceChildren(head, ...told.most.map(kindRow));
  if (told.least.length) {
    const line = element("tr"), cell = element("td", "note", "the most forgotten");
    cell.colSpan = 6;
    line.append(cell);
    table.append(line, ...told.least.map(kindRow));
  }
  byId("agreement").textContent = told.agreement ?? "";
}

function kindRow(kind) {
  const line = element("tr"), number = (value) => value.toLocaleString("en"), tenths = (value) => value.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const mattered = kind.measured ? `${number(kind.mattered)} of ${number(kind.measured)}` : "–";
  const cells = [kind.shows, number(kind.count), `${tenths(100 * kind.kept_for_good)}%`, kind.mean_span === null ? "–" : tenths(kind.mean_span), tenths(kind.mean_steps_live), mattered];
  line.append(...cells.map((text) => element("td", "", text)));
  return line;
}
