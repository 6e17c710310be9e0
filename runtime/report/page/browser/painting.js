"use strict";

/* Spots wider than this are few on the screen, and drawn one by one. */
const LARGE_RADIUS = 12;
const PHASES = 4;

/* Draws spots on a canvas: discs, or squares that close up to a dense map. */
class Painter {
  constructor(canvas, square) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.square = square;
    this.stamps = new Map();
    this.pixels = null;
  }

  resize(width, height) {
    if (this.canvas.width !== width || this.canvas.height !== height || this.pixels === null) {
      this.canvas.width = Math.max(1, width);
      this.canvas.height = Math.max(1, height);
      this.pixels = this.context.createImageData(this.canvas.width, this.canvas.height);
    }
  }

  /*
   * xy: level-0 px, x and y by turns. view: {left, top, scale}, device px = left + scale · level-0 px.
   * radius: device px, half the side of a square. place: of each spot on the colour map, 256 for a ring, 257 for
   * nothing. colours: Uint32, the colour map as the pixels hold it.
   */
  paint(xy, view, radius, place, colours) {
    const { width, height } = this.canvas;
    this.context.clearRect(0, 0, width, height);
    const rings = [];
    const large = radius > LARGE_RADIUS;
    const stamps = large ? [] : this.stampsOf(radius);
    const buffer = new Uint32Array(this.pixels.data.buffer);
    if (!large) {
      buffer.fill(0);
    }
    for (let spot = 0; spot < place.length; spot++) {
      const x = view.left + view.scale * xy[2 * spot];
      const y = view.top + view.scale * xy[2 * spot + 1];
      if (x < -radius || y < -radius || x > width + radius || y > height + radius || place[spot] === 257) {
        continue;
      }
      if (place[spot] === 256) {
        rings.push(x, y);
      } else if (large) {
        this.shape(x, y, radius, colours[place[spot]]);
      } else {
        this.stamp(buffer, x, y, stamps, colours[place[spot]]);
      }
    }
    if (!large) {
      this.context.putImageData(this.pixels, 0, 0);
    }
    this.rings(rings, radius);
  }

  shape(x, y, radius, colour) {
    this.context.fillStyle = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;
    if (this.square) {
      const [left, top] = [Math.floor(x - radius), Math.floor(y - radius)];
      this.context.fillRect(left, top, Math.ceil(x + radius) - left, Math.ceil(y + radius) - top);
    } else {
      this.context.beginPath();
      this.context.arc(x, y, radius, 0, 2 * Math.PI);
      this.context.fill();
    }
  }

  rings(centres, radius) {
    this.context.strokeStyle = "#6e6e73";
    this.context.lineWidth = 1;
    this.context.beginPath();
    for (let i = 0; i < centres.length; i += 2) {
      this.context.moveTo(centres[i] + radius, centres[i + 1]);
      this.context.arc(centres[i], centres[i + 1], radius, 0, 2 * Math.PI);
    }
    this.context.stroke();
  }

  /* Copy a small spot into the pixels; where two overlap, the one that covers more of a pixel has it. */
  stamp(buffer, x, y, stamps, colour) {
    const { width, height } = this.canvas;
    const column = Math.floor(x);
    const row = Math.floor(y);
    const phase = Math.floor((y - row) * PHASES) * PHASES + Math.floor((x - column) * PHASES);
    const { reach, coverage } = stamps[phase];
    const side = 2 * reach + 1;
    const opaque = colour & 0xffffff;
    for (let v = Math.max(0, reach - row); v < side && row - reach + v < height; v++) {
      const line = (row - reach + v) * width + column - reach;
      for (let u = Math.max(0, reach - column); u < side && column - reach + u < width; u++) {
        const part = coverage[v * side + u];
        if (part > buffer[line + u] >>> 24 || part === 255) {
          buffer[line + u] = ((part << 24) | opaque) >>> 0;
        }
      }
    }
  }

  /* The stamps of a radius, one for each quarter of a pixel that a centre can lie at. */
  stampsOf(radius) {
    const key = Math.round(100 * radius);
    let found = this.stamps.get(key);
    if (found === undefined) {
      if (this.stamps.size > 32) {
        this.stamps.clear();
      }
      const phases = Array.from({ length: PHASES * PHASES }, (_, phase) => phase);
      found = phases.map((phase) => this.coverage(radius, phase % PHASES, Math.floor(phase / PHASES)));
      this.stamps.set(key, found);
    }
    return found;
  }

  /* How much of each pixel around it a spot covers, 0 … 255. */
  coverage(radius, phaseX, phaseY) {
    const reach = Math.ceil(radius + 0.5);
    const side = 2 * reach + 1;
    const coverage = new Uint8Array(side * side);
    const within = (distance) => Math.min(1, Math.max(0, radius + 0.5 - distance));
    for (let i = 0; i < coverage.length; i++) {
      const dx = Math.abs((i % side) + 0.5 - reach - (phaseX + 0.5) / PHASES);
      const dy = Math.abs(Math.floor(i / side) + 0.5 - reach - (phaseY + 0.5) / PHASES);
      // A square has all of a pixel it touches, lest seams show between neighbours.
      const part = this.square ? Math.ceil(within(dx) * within(dy)) : within(Math.hypot(dx, dy));
      coverage[i] = Math.round(255 * part);
    }
    return { reach, coverage };
  }
}

/* Spots by square of tissue, to find the one under the pointer. */
class Nearest {
  constructor(xy, cell) {
    this.xy = xy;
    this.cell = cell;
    this.cells = new Map();
    for (let spot = 0; spot < xy.length / 2; spot++) {
      const key = this.key(Math.floor(xy[2 * spot] / cell), Math.floor(xy[2 * spot + 1] / cell));
      const held = this.cells.get(key);
      if (held === undefined) {
        this.cells.set(key, [spot]);
      } else {
        held.push(spot);
      }
    }
  }

  key(column, row) {
    return column * 1048576 + row;
  }

  /* The spot nearest to (x, y), level-0 px, or -1 where none is nearer than a cell. */
  find(x, y) {
    const column = Math.floor(x / this.cell);
    const row = Math.floor(y / this.cell);
    let best = -1;
    let least = this.cell ** 2;
    for (let dx = -1; dx <= 1; dx++) {
      for (let dy = -1; dy <= 1; dy++) {
        for (const spot of this.cells.get(this.key(column + dx, row + dy)) ?? []) {
          const distance = (this.xy[2 * spot] - x) ** 2 + (this.xy[2 * spot + 1] - y) ** 2;
          if (distance <= least) {
            least = distance;
            best = spot;
          }
        }
      }
    }
    return best;
  }
}
