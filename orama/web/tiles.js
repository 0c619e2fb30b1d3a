/**
 * The people on the stage: one tile each, one more for every shared screen, laid out to fill the space.
 * @module tiles
 */

const GAP = 10;
const WIDEST = 16 / 9;
/** The narrowest tile on a wide stage, and on a tall one, where faces may be cropped at the sides. */
const NARROWEST_WIDE = 1.15;
const NARROWEST_TALL = 3 / 5;
const STRIP_SIDE = 232;
const STRIP_BELOW = 116;

/** The largest tiles that `count` of fit into width × height: {columns, rows, width, height}. */
export function fit(count, width, height) {
  const narrowest = width > height ? NARROWEST_WIDE : NARROWEST_TALL;
  let best = { area: -1 };
  for (let columns = 1; columns <= count; columns += 1) {
    const rows = Math.ceil(count / columns);
    const cellWidth = (width - GAP * (columns - 1)) / columns;
    const cellHeight = (height - GAP * (rows - 1)) / rows;
    const tile = { columns, rows, width: Math.min(cellWidth, cellHeight * WIDEST), height: 0 };
    tile.height = Math.min(cellHeight, tile.width / narrowest);
    tile.area = tile.width * tile.height - (columns * rows - count); // fewer holes when areas are equal
    if (tile.area > best.area) best = tile;
  }
  return best;
}

/** Two letters that stand for a name. */
export function initials(name) {
  const words = name.trim().split(/\s+/).filter(Boolean);
  const letters = words.length > 1 ? [words[0], words.at(-1)] : words;
  return letters.map((word) => [...word][0].toUpperCase()).join("") || "?";
}

/** A colour of one's own, always the same for a name. */
export function hue(name) {
  return [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
}

/** Paints an avatar. */
export function paintAvatar(element, name) {
  element.textContent = initials(name);
  element.style.setProperty("--hue", hue(name));
}

class Tile {
  constructor(key, name, { own, screen }, pinned) {
    this.key = key;
    this.name = name;
    this.own = own;
    this.screen = screen;
    const template = document.getElementById("tile-template");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.tile = key;
    this.video = this.element.querySelector("video");
    this.video.classList.toggle("mirrored", own && !screen);
    this.element.classList.toggle("screen-share", screen);
    const title = screen ? (own ? "Your screen" : `${name}’s screen`) : own ? `${name} (you)` : name;
    this.title = title;
    this.element.querySelector(".caption-name").textContent = title;
    this.video.setAttribute("aria-label", screen ? title : `Video of ${title}`);
    paintAvatar(this.element.querySelector(".avatar"), name);
    this.pin = this.element.querySelector(".pin");
    this.pin.setAttribute("aria-label", `Enlarge ${title}`);
    this.pin.title = "Enlarge";
    this.pin.addEventListener("click", () => pinned(key));
    this.element.addEventListener("dblclick", (event) => event.target !== this.pin && pinned(key));
    if (own && screen) this.element.querySelector(".caption-muted").remove();
  }

  /** @param {?MediaStreamTrack} track */
  show(track) {
    if ((this.video.srcObject?.getTracks()[0] ?? null) !== track) {
      this.video.srcObject = track ? new MediaStream([track]) : null;
    }
    this.element.classList.toggle("has-video", Boolean(track));
  }

  /** Marks the microphone as off, for eyes and ears. */
  sound(on) {
    this.element.classList.toggle("no-sound", !on);
    this.element.querySelector(".caption-state").textContent = on ? "" : ", microphone off";
  }

  speaking(on) {
    this.element.classList.toggle("speaking", on);
  }

  /** @param {{grade: number, parts: string[]}} quality */
  quality({ grade, parts }) {
    const line = this.element.querySelector(".quality");
    line.dataset.grade = grade;
    line.title = parts.join(" · ");
    line.querySelector("use").setAttribute("href", `icons.svg#bars-${grade}`);
    const spans = parts.map((part, index) => {
      const span = document.createElement("span");
      span.textContent = part;
      span.classList.toggle("extra", index > 2 && index < parts.length - 1);
      return span;
    });
    line.querySelector(".quality-text").replaceChildren(...spans);
  }

  place({ left, top, width, height }) {
    const { style } = this.element;
    style.left = `${left}px`;
    style.top = `${top}px`;
    style.width = `${width}px`;
    style.height = `${height}px`;
  }
}

/** All tiles. A pinned tile, or else the newest shared screen, takes most of the space. */
export class Tiles {
  #list;
  #tiles = new Map();
  #pinned = null;

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
    new ResizeObserver(() => this.layout()).observe(list);
  }

  get size() {
    return this.#tiles.size;
  }

  get(key) {
    return this.#tiles.get(key);
  }

  /** The tile of a key, made when it is not there. */
  add(key, name, { own = false, screen = false } = {}) {
    let tile = this.#tiles.get(key);
    if (!tile) {
      tile = new Tile(key, name, { own, screen }, (pinned) => this.#pin(pinned));
      this.#tiles.set(key, tile);
      this.#list.append(tile.element);
      this.layout();
    }
    return tile;
  }

  remove(key) {
    const tile = this.#tiles.get(key);
    if (!tile) return;
    tile.show(null);
    tile.element.remove();
    this.#tiles.delete(key);
    if (this.#pinned === key) this.#pinned = null;
    this.layout();
  }

  clear() {
    for (const key of [...this.#tiles.keys()]) this.remove(key);
  }

  #pin(key) {
    this.#pinned = this.#pinned === key ? null : key;
    this.layout();
  }

  layout() {
    const { clientWidth: width, clientHeight: height } = this.#list;
    const tiles = [...this.#tiles.values()];
    const large = tiles.find(({ key }) => key === this.#pinned) ?? tiles.findLast(({ screen }) => screen);
    for (const tile of tiles) tile.pin.setAttribute("aria-pressed", String(tile.key === this.#pinned));
    if (!width || !height) return;
    if (!large || tiles.length === 1) {
      this.#grid(tiles, { left: 0, top: 0, width, height });
      return;
    }
    const others = tiles.filter((tile) => tile !== large);
    const beside = width > height;
    const below = Math.min(STRIP_BELOW * Math.ceil(others.length / 3), height * 0.4);
    const strip = beside ? Math.min(STRIP_SIDE, width * 0.3) : below;
    const main = beside ? { width: width - strip - GAP, height } : { width, height: height - strip - GAP };
    large.place({ left: 0, top: 0, ...main });
    if (beside) this.#grid(others, { left: main.width + GAP, top: 0, width: strip, height });
    else this.#grid(others, { left: 0, top: main.height + GAP, width, height: strip });
  }

  /** Rows of equal tiles, each row in the middle. */
  #grid(tiles, { left, top, width, height }) {
    const tile = fit(tiles.length, width, height);
    const firstTop = top + (height - tile.rows * tile.height - (tile.rows - 1) * GAP) / 2;
    tiles.forEach((each, index) => {
      const row = Math.floor(index / tile.columns);
      const inRow = Math.min(tile.columns, tiles.length - row * tile.columns);
      const firstLeft = left + (width - inRow * tile.width - (inRow - 1) * GAP) / 2;
      each.place({
        left: firstLeft + (index - row * tile.columns) * (tile.width + GAP),
        top: firstTop + row * (tile.height + GAP),
        width: tile.width,
        height: tile.height,
      });
    });
  }
}
