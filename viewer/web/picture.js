"use strict";
// The step that the page shows as one picture, for a talk or a paper. It is drawn from the page's own canvases, so that
// it needs neither a server nor a request.

const PICTURE_WIDTH = 1240; // pixels of the page
const PICTURE_EDGE = 24; // pixels of the page
const PICTURE_SCALE = 2; // pixels of the picture for each pixel of the page

/** The picture, filled from the top down. `places`: the box of each image on it, in pixels of the page. */
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

  /** Text that begins at x, in lines of at most `width` pixels. */
  text(text, size, { bold = false, colour = "--ink", x = PICTURE_EDGE, width = undefined } = {}) {
    const { context } = this, maxWidth = width ?? PICTURE_WIDTH - PICTURE_EDGE - x;
    context.font = `${bold ? "bold " : ""}${size}px ${css("--font")}`;
    context.fillStyle = colour.startsWith("--") ? css(colour) : colour;
    context.textAlign = "left";
    let line = "";
    const writeLine = () => { this.y += size * 1.35; context.fillText(line, x, this.y - size * 0.35); };
    for (const word of text.split(/\s+/)) {
      const longer = line ? `${line} ${word}` : word;
      if (line && context.measureText(longer).width > maxWidth) { writeLine(); line = word; } else line = longer;
    }
    if (line) writeLine();
  }

  /** A canvas at the largest scale that fits into `maxWidth` and `maxHeight`. */
  image(name, canvas, maxWidth, maxHeight = Infinity, x = PICTURE_EDGE) {
    const scale = Math.min(maxWidth / canvas.width, maxHeight / canvas.height);
    const size = [canvas.width * scale, canvas.height * scale].map(Math.round);
    this.y = Math.round(this.y);
    this.context.imageSmoothingEnabled = scale * PICTURE_SCALE < 1;
    this.context.drawImage(canvas, x, this.y, ...size);
    this.places[name] = [x, this.y, ...size];
    this.y += size[1];
  }
}

/** The sheet of the step that the page shows: the story, the world, the decision, the memories' lives, the charts. */
function drawPicture(page) {
  const width = PICTURE_WIDTH - 2 * PICTURE_EDGE;
  const draft = new Sheet(10); // it is filled once to find its height
  fillPicture(page, draft, width);
  const sheet = new Sheet(Math.ceil(draft.y + PICTURE_EDGE));
  fillPicture(page, sheet, width);
  return sheet;
}

function fillPicture(page, sheet, width) {
  const { record } = page, soft = { colour: "--soft" };
  sheet.text(byId("title").textContent, 15, soft);
  sheet.text(record.story.headline, 22, { bold: true });
  if (record.story.detail) sheet.text(record.story.detail, 14, soft);
  sheet.y += 12;
  fillWorlds(page, sheet, width);
  sheet.y += 10;
  fillStep(page, sheet);
  page.timelines.forEach((timeline, i) => {
    sheet.text(`Layer ${i + 1} of ${page.timelines.length}: what it keeps, and for how long`, 14, { bold: true });
    sheet.image(`layer ${i + 1}`, timeline.canvas, width);
  });
  for (const plot of page.charts.plots) fillChart(sheet, plot, width);
  sheet.text(byId("about").textContent, 13, soft);
}

/** The world and, if it is shown, the world of the other episode. */
function fillWorlds(page, sheet, width) {
  const hasOther = page.compare?.on, soft = { colour: "--soft" };
  if (hasOther) sheet.text(byId("with-note").textContent, 14, soft);
  if (page.film) sheet.image("world", byId("world"), Math.min(width, byId("world").width), 420);
  if (!hasOther) return;
  sheet.text(byId("without-note").textContent, 14, soft);
  sheet.image("other", byId("other-world"), Math.min(width, byId("other-world").width), 420);
}

/** The agent's view, and beside it the action, the chosen memory and what its removal did. */
function fillStep(page, sheet) {
  const { record, t } = page;
  const top = sheet.y, x = PICTURE_EDGE + 150;
  sheet.image("view", byId("view"), 130, 130);
  const bottom = sheet.y;
  sheet.y = top;
  const numbers = `reward ${trimmed(record.rewards[t])}, value ${two(record.values[t])}`;
  sheet.text(`Step ${t}: ${actionText(record, t)}; ${numbers}`, 15, { bold: true, x });
  if (page.chosen !== null) {
    sheet.text(`Observation of step ${page.chosen}${showsText(record, page.chosen)}`, 15, { x });
  }
  const decision = byId("effect").querySelector("h3");
  if (decision) sheet.text(decision.firstChild.textContent, 15, { x });
  for (const verdict of byId("effect").querySelectorAll(":scope > .verdict")) {
    const texts = [...verdict.childNodes].filter((node) => node.nodeType === 3 || node.tagName === "B");
    sheet.text(texts.map((node) => node.textContent).join(""), 15, { x });
  }
  sheet.y = Math.max(sheet.y, bottom) + 12;
}

/** A chart of uPlot with its title and, if it has several lines, their legend. */
function fillChart(sheet, { root, ctx, series }, width) {
  const title = root.previousElementSibling.textContent;
  sheet.text(title, 14, { bold: true });
  sheet.image(`chart ${title}`, ctx.canvas, width);
  const lines = series.length > 2 ? series.slice(1) : [], y = sheet.y;
  lines.forEach(({ label, _stroke, stroke }, i) => {
    sheet.y = y;
    const colour = typeof stroke === "function" ? stroke() : stroke ?? _stroke;
    sheet.text(`■ ${label}`, 12, { colour, x: PICTURE_EDGE + (i % 6) * (width / 6), width: 1000 });
  });
  sheet.y += 4;
}

/** Downloads the picture. */
function savePicture(page) {
  page.paint(); // so that all canvases show the same step
  drawPicture(page).canvas.toBlob((blob) => {
    const link = element("a"), { env, seed } = page.record;
    link.href = URL.createObjectURL(blob);
    link.download = `${env.replaceAll(/[^\w.-]+/g, "_")}-seed-${seed}-step-${page.t}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, "image/png");
}
