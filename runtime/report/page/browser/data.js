"use strict";

/* Blocks of bytes in the page: base64 of zlib streams, decoded on demand. */
class DataBlocks {
  constructor(text) {
    this.text = text;
  }

  /* block: [start, length] in the text. */
  async bytes([start, length]) {
    const binary = atob(this.text.slice(start, start + length));
    const deflated = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async floats(block) {
    return new Float32Array((await this.bytes(block)).buffer);
  }

  async lines(block) {
    return new TextDecoder().decode(await this.bytes(block)).split("\n");
  }
}

/* The values of a channel at every spot, NaN where missing, each off by at most half a step. */
class Values {
  constructor(array, step, steps) {
    this.array = array;
    this.step = step;
    this.coarse = steps < 1000;
  }

  at(spot) {
    return this.array[spot];
  }

  /* The value as text, with four digits or fewer; a coarse value with its largest error. */
  text(spot) {
    const value = this.at(spot);
    if (Number.isNaN(value)) {
      return "unknown";
    }
    const error = this.step / 2;
    if (this.coarse && error > 0) {
      const digits = Math.max(0, Math.min(12, 1 - Math.floor(Math.log10(error))));
      return `${value.toFixed(digits)} ± ${error.toFixed(digits)}`;
    }
    const known = this.step > 0 ? Math.ceil(-Math.log10(this.step)) : 6;
    const readable = value === 0 ? 0 : 3 - Math.floor(Math.log10(Math.abs(value)));
    return value.toFixed(Math.max(0, Math.min(known, readable, 12)));
  }

  /* Index 0 … 255 of every spot in a colormap that spans `limits`; MISSING without a value. */
  colorIndices(limits) {
    const [low, high] = limits;
    const scale = high > low ? 256 / (high - low) : 0;
    const { array } = this;
    const indices = new Uint16Array(array.length);
    for (let spot = 0; spot < array.length; spot++) {
      const value = array[spot];
      if (Number.isNaN(value)) {
        indices[spot] = MISSING;
      } else if (scale > 0) {
        indices[spot] = Math.min(255, Math.max(0, Math.floor((value - low) * scale)));
      } else {
        indices[spot] = value > low ? 255 : 0;
      }
    }
    return indices;
  }
}

const CACHED_CHANNELS = 32;

/* Decodes channels and caches the last ones. */
class ValueCache {
  constructor(data) {
    this.data = data;
    this.cache = new Map();
  }

  /* layer: an entry of `metadata.layers`; gene: its index, ignored for a layer without genes. */
  async values(layer, gene) {
    const index = layer.genes ? gene : 0;
    const key = `${layer.name} ${index}`;
    if (!this.cache.has(key)) {
      this.cache.set(key, await this.decode(layer, layer.channels[index]));
      if (this.cache.size > CACHED_CHANNELS) {
        this.cache.delete(this.cache.keys().next().value);
      }
    }
    return this.cache.get(key);
  }

  async decode({ steps }, { low, step, block }) {
    const bytes = await this.data.bytes(block);
    const codes = steps > 254 ? new Uint16Array(bytes.buffer) : bytes;
    return new Values(Float32Array.from(codes, (code) => (code === 0 ? NaN : low + (code - 1) * step)), step, steps);
  }
}
