"use strict";
// Two episodes side by side: as it was, and as it would have gone without the memory that the headline is about.

const MAX_ASPECT = 2.5; // width over height; wider worlds stand one above the other

class Comparison {
  /** packed: `film` (null for none) and `seen` of the page's data. record: `without` of the episode's record. */
  static async of(packed, record) {
    const film = packed.film && (await Film.of(packed.film));
    return Object.assign(new Comparison(), { film, seen: await Seen.of(packed.seen), record, on: true });
  }

  /** The step of the other episode that is shown at step t. Once it is over, that is its last one. */
  at(t) { return Math.min(t, this.record.steps - 1); }

  draw(page) {
    const t = page.now(), { record } = page, other = this.record;
    const canvas = byId("other-world");
    if (this.film) this.film.draw(canvas, this.at(t)); else this.seen.draw(canvas, this.at(t));
    byId("frames").classList.toggle("beside", canvas.width / canvas.height < MAX_ASPECT);
    byId("with-note").textContent = `As it was: ${momentText(record, t)}`;
    const moment = t < other.step ? `the same until step ${other.step}` : momentText(other, t, record.action_names);
    byId("without-note").textContent = `${other.label[0].toUpperCase()}${other.label.slice(1)}: ${moment}`;
    canvas.setAttribute("aria-label", `The world at step ${t}, ${other.label}`);
  }
}

/** The action of an episode at step t, or how the episode ended before. names: of the actions, if it has none. */
function momentText(episode, t, names = episode.action_names) {
  if (t >= episode.steps) return `over, ${episode.outcome}`;
  const action = episode.action_texts ? episode.action_texts[t] : names[episode.actions[t]];
  return t === episode.steps - 1 ? `${action}, the end: ${episode.outcome}` : action;
}

function drawComparison(page) {
  const { compare } = page, on = Boolean(compare?.on);
  const button = byId("compare");
  button.hidden = !compare;
  byId("other").hidden = byId("with-note").hidden = !on;
  byId("slider").max = page.last();
  if (!compare) { byId("frames").classList.remove("beside"); return; }
  button.textContent = on ? "hide the other episode" : `side by side with the episode ${compare.record.label}`;
  button.setAttribute("aria-pressed", on);
  if (on) compare.draw(page); else byId("frames").classList.remove("beside");
}
