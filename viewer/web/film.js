"use strict";
// Pictures from atlases of tiles: the frames of the world, and what the agent saw.

const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function imageOf(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture of the page could not be read"));
    image.src = url;
  });
}

function drawTile(context, atlas, tile, x, y) {
  const { image, size, columns } = atlas;
  context.drawImage(image, (tile % columns) * size, Math.floor(tile / columns) * size, size, size, x, y, size, size);
}

/** The frames of the world: the tile at each place of the picture at each step. */
class Film {
  static async of(packed) {
    return Object.assign(new Film(), packed, { image: await imageOf(packed.png) })._unpack();
  }

  _unpack() {
    this.wide = Math.ceil(this.width / this.size);
    const places = this.wide * Math.ceil(this.height / this.size);
    this.tiles = new Uint16Array(places * this.changes.length); // of every step
    const tiles = new Uint16Array(places); // of the latest step
    this.changes.forEach((changes, t) => {
      for (let i = 0; i < changes.length; i += 2) tiles[changes[i]] = changes[i + 1];
      this.tiles.set(tiles, t * places);
    });
    this.count = places;
    if (this.shown) this.shown.forEach((columns, t) => { if (columns === -1) this.shown[t] = this.shown[t - 1]; });
    return this;
  }

  draw(canvas, t) {
    if (canvas.width !== this.width || canvas.height !== this.height) {
      canvas.width = this.width;
      canvas.height = this.height;
    }
    const context = canvas.getContext("2d");
    for (let i = 0; i < this.count; i++) {
      const x = (i % this.wide) * this.size, y = Math.floor(i / this.wide) * this.size;
      drawTile(context, this, this.tiles[t * this.count + i], x, y);
    }
  }

  /**
   * Where the agent stood at step s, in pixels of the picture of step t. null if the picture does not show that place,
   * undefined if it is not known.
   */
  spot(s, t) {
    if (!this.places) return undefined;
    const [column, line] = this.places[s];
    const at = this.shown[t].indexOf(column);
    return at < 0 ? null : { x: at * this.size, y: line * this.size };
  }

  mark(canvas, spot, colour) {
    const context = canvas.getContext("2d");
    for (const [width, stroke] of [[7, "#000"], [4, colour]]) {
      context.lineWidth = width;
      context.strokeStyle = stroke;
      context.strokeRect(spot.x + 4, spot.y + 4, this.size - 8, this.size - 8);
    }
  }
}

/** What the agent saw at each step. */
class Seen {
  static async of(packed) {
    return Object.assign(new Seen(), packed, { image: await imageOf(packed.png) });
  }

  draw(canvas, t) {
    const look = this.looks[this.which[t]];
    if (canvas.look === look) return; // drawn already; every episode has looks of its own
    canvas.look = look;
    canvas.width = this.width;
    canvas.height = this.height;
    const context = canvas.getContext("2d");
    look.forEach((tile, i) => {
      drawTile(context, this, tile, (i % this.wide) * this.size, Math.floor(i / this.wide) * this.size);
    });
  }
}
