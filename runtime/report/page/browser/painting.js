"use strict";

/* Color indices beyond the 256 of a colormap. */
const MISSING = 256;
const HIDDEN = 257;

/* Larger spots are few on the screen: draw them with the canvas API instead of stamps. */
const LARGE_RADIUS = 12;
/* Subpixel positions of a stamp along each axis. */
const PHASES = 4;

/* Draws spots on a canvas: discs, or squares for a dense map. */
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
   * xy: level-0 px, interleaved. view: {left, top, scale}, device px = left + scale · level-0 px.
   * radius: device px, half the side of a square. colorIndices: one per spot; MISSING draws a ring, HIDDEN nothing.
   * colormap: Uint32 in the byte order of image data. hatched: 1 for each spot that is struck through.
   */
  paint(xy, view, radius, colorIndices, colormap, hatched) {
    const { width, height } = this.canvas;
    this.context.clearRect(0, 0, width, height);
    const rings = [];
    const struck = [];
    const large = radius > LARGE_RADIUS;
    const stamps = large ? [] : this.getStamps(radius);
    const buffer = new Uint32Array(this.pixels.data.buffer);
    if (!large) {
      buffer.fill(0);
    }
    for (let spot = 0; spot < colorIndices.length; spot++) {
      const x = view.left + view.scale * xy[2 * spot];
      const y = view.top + view.scale * xy[2 * spot + 1];
      const index = colorIndices[spot];
      if (x < -radius || y < -radius || x > width + radius || y > height + radius || index === HIDDEN) {
        continue;
      }
      if (hatched[spot] === 1) {
        struck.push(x, y);
      }
      if (index === MISSING) {
        rings.push(x, y);
      } else if (large) {
        this.drawShape(x, y, radius, colormap[index]);
      } else {
        this.drawStamp(buffer, x, y, stamps, colormap[index]);
      }
    }
    if (!large) {
      this.context.putImageData(this.pixels, 0, 0);
    }
    this.drawRings(rings, radius);
    this.drawHatching(struck, radius);
  }

  /* Three strokes across each spot, white under black so that they show on every color. */
  drawHatching(centers, radius) {
    const reach = radius * Math.SQRT1_2;
    for (const [color, width] of [["#ffffff", 2.5], ["#1c1c1e", 1]]) {
      this.context.strokeStyle = color;
      this.context.lineWidth = Math.min(width, Math.max(0.5, radius / 3));
      this.context.beginPath();
      for (let i = 0; i < centers.length; i += 2) {
        for (const shift of radius < 5 ? [0] : [-0.6, 0, 0.6]) {
          const along = reach * (1 - Math.abs(shift) / 2);
          const [x, y] = [centers[i] + shift * reach, centers[i + 1] + shift * reach];
          this.context.moveTo(x - along, y + along);
          this.context.lineTo(x + along, y - along);
        }
      }
      this.context.stroke();
    }
  }

  drawShape(x, y, radius, color) {
    this.context.fillStyle = `rgb(${color & 255} ${(color >> 8) & 255} ${(color >> 16) & 255})`;
    if (this.square) {
      const [left, top] = [Math.floor(x - radius), Math.floor(y - radius)];
      this.context.fillRect(left, top, Math.ceil(x + radius) - left, Math.ceil(y + radius) - top);
    } else {
      this.context.beginPath();
      this.context.arc(x, y, radius, 0, 2 * Math.PI);
      this.context.fill();
    }
  }

  drawRings(centers, radius) {
    this.context.strokeStyle = "#6e6e73";
    this.context.lineWidth = 1;
    this.context.beginPath();
    for (let i = 0; i < centers.length; i += 2) {
      this.context.moveTo(centers[i] + radius, centers[i + 1]);
      this.context.arc(centers[i], centers[i + 1], radius, 0, 2 * Math.PI);
    }
    this.context.stroke();
  }

  /* Copy a small spot into the pixels; the spot that covers more of a pixel wins. */
  drawStamp(buffer, x, y, stamps, color) {
    const { width, height } = this.canvas;
    const column = Math.floor(x);
    const row = Math.floor(y);
    const phase = Math.floor((y - row) * PHASES) * PHASES + Math.floor((x - column) * PHASES);
    const { reach, coverage } = stamps[phase];
    const side = 2 * reach + 1;
    const rgb = color & 0xffffff;
    for (let v = Math.max(0, reach - row); v < side && row - reach + v < height; v++) {
      const line = (row - reach + v) * width + column - reach;
      for (let u = Math.max(0, reach - column); u < side && column - reach + u < width; u++) {
        const alpha = coverage[v * side + u];
        if (alpha > buffer[line + u] >>> 24 || alpha === 255) {
          buffer[line + u] = ((alpha << 24) | rgb) >>> 0;
        }
      }
    }
  }

  /* The stamps of a radius, one per subpixel position of the center. */
  getStamps(radius) {
    const key = Math.round(100 * radius);
    let stamps = this.stamps.get(key);
    if (stamps === undefined) {
      if (this.stamps.size > 32) {
        this.stamps.clear();
      }
      const phases = Array.from({ length: PHASES * PHASES }, (_, phase) => phase);
      stamps = phases.map((phase) => this.rasterize(radius, phase % PHASES, Math.floor(phase / PHASES)));
      this.stamps.set(key, stamps);
    }
    return stamps;
  }

  /* The coverage, 0 … 255, of each pixel around a spot. */
  rasterize(radius, phaseX, phaseY) {
    const reach = Math.ceil(radius + 0.5);
    const side = 2 * reach + 1;
    const coverage = new Uint8Array(side * side);
    const within = (distance) => Math.min(1, Math.max(0, radius + 0.5 - distance));
    for (let i = 0; i < coverage.length; i++) {
      const dx = Math.abs((i % side) + 0.5 - reach - (phaseX + 0.5) / PHASES);
      const dy = Math.abs(Math.floor(i / side) + 0.5 - reach - (phaseY + 0.5) / PHASES);
      // A square fills every pixel it touches, so that no seams show between neighbors.
      const share = this.square ? Math.ceil(within(dx) * within(dy)) : within(Math.hypot(dx, dy));
      coverage[i] = Math.round(255 * share);
    }
    return { reach, coverage };
  }
}

/* Spots by grid cell, to find the one under the pointer. */
class Nearest {
  constructor(xy, cell) {
    this.xy = xy;
    this.cell = cell;
    this.cells = new Map();
    for (let spot = 0; spot < xy.length / 2; spot++) {
      const key = this.key(Math.floor(xy[2 * spot] / cell), Math.floor(xy[2 * spot + 1] / cell));
      const spots = this.cells.get(key);
      if (spots === undefined) {
        this.cells.set(key, [spot]);
      } else {
        spots.push(spot);
      }
    }
  }

  key(column, row) {
    return column * 1048576 + row;
  }

  /* The spot nearest to (x, y), level-0 px; -1 if none is within a cell. */
  find(x, y) {
    const column = Math.floor(x / this.cell);
    const row = Math.floor(y / this.cell);
    let nearest = -1;
    let least = this.cell ** 2;
    for (let dx = -1; dx <= 1; dx++) {
      for (let dy = -1; dy <= 1; dy++) {
        for (const spot of this.cells.get(this.key(column + dx, row + dy)) ?? []) {
          const distance = (this.xy[2 * spot] - x) ** 2 + (this.xy[2 * spot + 1] - y) ** 2;
          if (distance <= least) {
            least = distance;
            nearest = spot;
          }
        }
      }
    }
    return nearest;
  }
}
