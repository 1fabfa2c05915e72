"use strict";
// Two episodes side by side: as it was, and as it would have gone without the memory that the headline is about.

const FLAT = 2.5; // worlds so many times as wide as high stand one above the other

class Comparison {
  /** packed: of the page's data, `film` (null for none) and `seen`; record: `without` of the episode's record. */
  static async of(packed, record) {
    const film = packed.film && (await Film.of(packed.film));
    return Object.assign(new Comparison(), { film, seen: await Seen.of(packed.seen), record, on: true });
  }

  /** The step that is shown of the other episode at step t: its last one once it is over. */
  at(t) { return Math.min(t, this.record.steps - 1); }

  draw(page) {
    const t = page.now(), { record } = page, other = this.record;
    const canvas = byId("other-world");
    if (this.film) this.film.draw(canvas, this.at(t)); else this.seen.draw(canvas, this.at(t));
    const wide = canvas.width / canvas.height;
    byId("frames").classList.toggle("beside", wide < FLAT);
    byId("with-note").textContent = `As it was: ${momentText(record, t)}`;
    const diverged = t < other.step ? `the same until step ${other.step}` : momentText(other, t, record.action_names);
    byId("without-note").textContent = `${other.label[0].toUpperCase()}${other.label.slice(1)}: ${diverged}`;
    canvas.setAttribute("aria-label", `The world at step ${t}, ${other.label}`);
  }
}

/** What an episode does at step t, or how it ended before. names: of the actions, where it has none of its own. */
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
