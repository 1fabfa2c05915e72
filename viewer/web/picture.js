"use strict";
// The moment that is shown as one picture, for a talk or a paper: drawn here from the page's own canvases, so that it
// needs neither a server nor a request.

const PICTURE_WIDTH = 1240, PICTURE_EDGE = 24, PICTURE_SCALE = 2; // pixels of the page, and of the picture for each

/** A page of the picture that is filled from the top down. `places`: where what stands, in pixels of the page. */
class Sheet {
  constructor(height) {
    this.canvas = document.createElement("canvas");
    this.canvas.width = PICTURE_WIDTH * PICTURE_SCALE;
    this.canvas.height = height * PICTURE_SCALE;
    this.context = this.canvas.getContext("2d");
    this.context.scale(PICTURE_SCALE, PICTURE_SCALE);
    this.context.fillStyle = css("--card");
    this.context.fillRect(0, 0, PICTURE_WIDTH, height);
    this.y = PICTURE_EDGE;
    this.places = {};
  }

  /** Text in lines that fit, from x on. */
  text(words, size, { bold = false, colour = "--ink", x = PICTURE_EDGE, wide = PICTURE_WIDTH - PICTURE_EDGE - x } = {}) {
    const { context } = this;
    context.font = `${bold ? "bold " : ""}${size}px ${css("--font")}`;
    context.fillStyle = colour.startsWith("--") ? css(colour) : colour;
    context.textAlign = "left";
    let line = "";
    const put = () => { this.y += size * 1.35; context.fillText(line, x, this.y - size * 0.35); };
    for (const word of words.split(/\s+/)) {
      const longer = line ? `${line} ${word}` : word;
      if (line && context.measureText(longer).width > wide) { put(); line = word; } else line = longer;
    }
    if (line) put();
  }

  /** A canvas, `wide` pixels wide or less if it would be higher than `high`. */
  image(name, canvas, wide, high = Infinity, x = PICTURE_EDGE) {
    const part = Math.min(wide / canvas.width, high / canvas.height);
    const size = [canvas.width * part, canvas.height * part].map(Math.round);
    this.y = Math.round(this.y);
    this.context.imageSmoothingEnabled = part * PICTURE_SCALE < 1;
    this.context.drawImage(canvas, x, this.y, ...size);
    this.places[name] = [x, this.y, ...size];
    this.y += size[1];
  }
}

/** The sheet of the page's moment: the story, the world, what became of the decision, the memories' lives, the charts. */
function drawPicture(page) {
  const inner = PICTURE_WIDTH - 2 * PICTURE_EDGE;
  const draft = new Sheet(10); // how high it is, is known when it is full
  fillPicture(page, draft, inner);
  const sheet = new Sheet(Math.ceil(draft.y + PICTURE_EDGE));
  fillPicture(page, sheet, inner);
  return sheet;
}

function fillPicture(page, sheet, inner) {
  const { record, t } = page, soft = { colour: "--soft" };
  sheet.text(byId("title").textContent, 15, soft);
  sheet.text(record.story.headline, 22, { bold: true });
  if (record.story.detail) sheet.text(record.story.detail, 14, soft);
  sheet.y += 12;
  const compared = page.compare?.on, note = (id) => compared && sheet.text(byId(id).textContent, 14, soft);
  note("with-note");
  if (page.film) sheet.image("world", byId("world"), Math.min(inner, byId("world").width), 420);
  note("without-note");
  if (compared) sheet.image("other", byId("other-world"), Math.min(inner, byId("other-world").width), 420);
  sheet.y += 10;
  const top = sheet.y, x = PICTURE_EDGE + 150;
  sheet.image("view", byId("view"), 130, 130);
  const below = sheet.y;
  sheet.y = top;
  sheet.text(`Step ${t}: ${actionText(record, t)}; reward ${trimmed(record.rewards[t])}, value ${two(record.values[t])}`, 15, { bold: true, x });
  if (page.chosen !== null) sheet.text(`Observation of step ${page.chosen}${showsText(record, page.chosen)}`, 15, { x });
  const decision = byId("effect").querySelector("h3");
  if (decision) sheet.text(decision.firstChild.textContent, 15, { x });
  for (const verdict of byId("effect").querySelectorAll(":scope > .verdict")) {
    sheet.text([...verdict.childNodes].filter((node) => node.className !== "pair").map((node) => node.nodeType === 3 || node.tagName === "B" ? node.textContent : "").join(""), 15, { x });
  }
  sheet.y = Math.max(sheet.y, below) + 12;
  page.timelines.forEach((timeline, i) => {
    sheet.text(`Layer ${i + 1} of ${page.timelines.length}: what it keeps, and for how long`, 14, { bold: true });
    sheet.image(`layer ${i + 1}`, timeline.canvas, inner);
  });
  for (const { root, ctx, series } of page.charts.plots) {
    sheet.text(root.previousElementSibling.textContent, 14, { bold: true });
    sheet.image(`chart ${root.previousElementSibling.textContent}`, ctx.canvas, inner);
    const one = series.length > 2 ? series.slice(1) : [], y = sheet.y;
    one.forEach(({ label, _stroke, stroke }, i) => {
      sheet.y = y;
      const colour = typeof stroke === "function" ? stroke() : stroke ?? _stroke;
      sheet.text(`■ ${label}`, 12, { colour, x: PICTURE_EDGE + (i % 6) * (inner / 6), wide: 1000 });
    });
    sheet.y += 4;
  }
  sheet.text(byId("about").textContent, 13, soft);
}

/** Hands the picture to the browser's downloads. */
function savePicture(page) {
  page.paint(); // all of the same moment
  drawPicture(page).canvas.toBlob((blob) => {
    const link = element("a"), { env, seed } = page.record;
    link.href = URL.createObjectURL(blob);
    link.download = `${env.replaceAll(/[^\w.-]+/g, "_")}-seed-${seed}-step-${page.t}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, "image/png");
}
