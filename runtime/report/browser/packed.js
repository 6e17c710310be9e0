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

/* The values of one map at every spot: whole numbers, 0 where nothing is known, with their place on a line. */
class Values {
  constructor(codes, low, step) {
    this.codes = codes;
    this.low = low;
    this.step = step;
  }

  at(spot) {
    const code = this.codes[spot];
    return code === 0 ? NaN : this.low + (code - 1) * this.step;
  }

  /* The value as text, with no more digits than its steps can tell, and four at most. */
  text(spot) {
    const value = this.at(spot);
    if (Number.isNaN(value)) {
      return "unknown";
    }
    const told = this.step > 0 ? Math.ceil(-Math.log10(this.step)) : 6;
    const most = value === 0 ? 0 : 3 - Math.floor(Math.log10(Math.abs(value)));
    return value.toFixed(Math.max(0, Math.min(told, most, 12)));
  }

  /* Place 0 … 255 on a colour map that runs over `limits`, for every code; 256 stands for a code without a value. */
  places(limits) {
    const places = new Uint16Array(this.codes.BYTES_PER_ELEMENT === 1 ? 256 : 65536);
    const span = limits[1] - limits[0];
    for (let code = 1; code < places.length; code++) {
      const value = this.low + (code - 1) * this.step;
      const share = span > 0 ? (value - limits[0]) / span : value > limits[0] ? 1 : 0;
      places[code] = Math.min(255, Math.max(0, Math.floor(share * 256)));
    }
    places[0] = 256;
    return places;
  }
}

/* What there is to show, gene by gene; the last few genes looked at stay unpacked. */
class Library {
  constructor(told, packed) {
    this.told = told;
    this.packed = packed;
    this.kept = new Map();
  }

  /* layer: an entry of `told.layers`; gene: its place in `told.genes`, of no meaning for a layer without genes. */
  async values(layer, gene) {
    const part = layer.genes ? gene : 0;
    const key = `${layer.name} ${part}`;
    if (!this.kept.has(key)) {
      const bytes = await this.packed.bytes(layer.name, part);
      const codes = this.told.wide ? new Uint16Array(bytes.buffer) : bytes;
      this.kept.set(key, new Values(codes, layer.low[part], layer.step[part]));
      if (this.kept.size > 32) {
        this.kept.delete(this.kept.keys().next().value);
      }
    }
    return this.kept.get(key);
  }
}
