"use strict";

/* Blocks of bytes that travel inside the page as base64 of zlib streams, unpacked when they are asked for. */
class Packed {
  constructor(text, blocks) {
    this.text = text;
    this.blocks = blocks;
  }

  has(name) {
    return name in this.blocks;
  }

  /* The bytes of block `name`, or of its part `part` where it is a list of blocks. */
  async bytes(name, part) {
    const block = part === undefined ? this.blocks[name] : this.blocks[name][part];
    const binary = atob(this.text.slice(block[0], block[0] + block[1]));
    const packed = Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async floats(name) {
    return new Float32Array((await this.bytes(name)).buffer);
  }

  async lines(name) {
    return new TextDecoder().decode(await this.bytes(name)).split("\n");
  }
}

/* The values of one map at every spot, NaN where nothing is known, each off by half a step at the most. */
class Values {
  constructor(found, step, steps) {
    this.found = found;
    this.step = step;
    this.coarse = steps < 1000;
  }

  at(spot) {
    return this.found[spot];
  }

  /* The value as text, with no more digits than are known, four at most; where they are fewer, by how much it may be off. */
  text(spot) {
    const value = this.at(spot);
    if (Number.isNaN(value)) {
      return "unknown";
    }
    const off = this.step / 2;
    if (this.coarse && off > 0) {
      const digits = Math.max(0, Math.min(12, 1 - Math.floor(Math.log10(off))));
      return `${value.toFixed(digits)} ± ${off.toFixed(digits)}`;
    }
    const told = this.step > 0 ? Math.ceil(-Math.log10(this.step)) : 6;
    const most = value === 0 ? 0 : 3 - Math.floor(Math.log10(Math.abs(value)));
    return value.toFixed(Math.max(0, Math.min(told, most, 12)));
  }

  /* Place 0 … 255 of every spot on a colour map that runs over `limits`; 256 for a spot without a value. */
  places(limits) {
    const [low, high] = limits;
    const scale = high > low ? 256 / (high - low) : 0;
    const { found } = this;
    const places = new Uint16Array(found.length);
    for (let spot = 0; spot < found.length; spot++) {
      const value = found[spot];
      if (Number.isNaN(value)) {
        places[spot] = 256;
      } else if (scale > 0) {
        places[spot] = Math.min(255, Math.max(0, Math.floor((value - low) * scale)));
      } else {
        places[spot] = value > low ? 255 : 0;
      }
    }
    return places;
  }
}

/* What there is to show, gene by gene; the last few genes looked at stay unpacked. */
class Library {
  constructor(told, packed) {
    this.told = told;
    this.packed = packed;
    this.kept = new Map();
    this.compact = new Map();
  }

  /* layer: an entry of `told.layers`; gene: its place in `told.genes`, of no meaning for a layer without genes. */
  async values(layer, gene) {
    const part = layer.genes ? gene : 0;
    const key = `${layer.name} ${part}`;
    if (!this.kept.has(key)) {
      this.kept.set(key, await this.unpacked(layer, part));
      if (this.kept.size > 32) {
        this.kept.delete(this.kept.keys().next().value);
      }
    }
    return this.kept.get(key);
  }

  async unpacked(layer, part) {
    const [low, step] = [layer.low[part], layer.step[part]];
    if (layer.compact !== null) {
      if (!this.compact.has(layer.name)) {
        this.compact.set(layer.name, CompactMap.open(this.packed, layer));
      }
      const map = await this.compact.get(layer.name);
      return new Values(await map.values(part, low, step), step, layer.steps);
    }
    const bytes = await this.packed.bytes(layer.name, part);
    const codes = layer.steps > 254 ? new Uint16Array(bytes.buffer) : bytes;
    const found = Float32Array.from(codes, (code) => (code === 0 ? NaN : low + (code - 1) * step));
    return new Values(found, step, layer.steps);
  }
}
