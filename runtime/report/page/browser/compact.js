"use strict";

/* How many digits stand in a byte, by the largest number that one says itself. */
const DIGITS = { 1: 5, 2: 3, 7: 2, 127: 1 };

/* The n whole numbers of a block as digits.py writes it. */
function wholeNumbers(bytes, n) {
  const most = bytes[0];
  const base = 2 * most + 1;
  const numbers = new Int32Array(n);
  let at = 1;
  for (let i = 0; i < n; at++) {
    let byte = bytes[at];
    for (let digit = 0; digit < DIGITS[most] && i < n; digit++, i++) {
      numbers[i] = (byte % base) - most;
      byte = Math.floor(byte / base);
    }
  }
  for (let i = 0; i < n; i++) {
    if (numbers[i] === most || numbers[i] === -most) {
      let beyond = 0;
      let scale = 1;
      for (; bytes[at] > 127; at++, scale *= 128) {
        beyond += (bytes[at] & 127) * scale;
      }
      beyond += bytes[at++] * scale;
      numbers[i] += Math.sign(numbers[i]) * beyond;
    }
  }
  return numbers;
}

/* The genes of a large map: maps they share, what the spots before a spot foretell, and whole steps from there. */
class CompactMap {
  constructor(packed, layer) {
    Object.assign(this, { packed, layer });
  }

  static async open(packed, layer) {
    const map = new CompactMap(packed, layer);
    const { name } = layer;
    map.known = await packed.bytes(`${name} known`);
    const back = new Uint32Array((await packed.bytes(`${name} back`)).buffer);
    map.n = back.length / 4;
    map.back = [0, 1, 2, 3].map((which) => back.subarray(which * map.n, (which + 1) * map.n));
    map.means = await packed.floats(`${name} means`);
    map.loadings = new Int16Array((await packed.bytes(`${name} loadings`)).buffer);
    map.maps = await Promise.all(layer.compact.mapWeights.map((weights, place) => map.sharedMap(weights, place)));
    return map;
  }

  /* A shared map in whole steps at each known spot: what is foretold, rounded half up, and the difference from it. */
  async sharedMap(weights, place) {
    const { n } = this;
    const found = wholeNumbers(await this.packed.bytes(`${this.layer.name} maps`, place), n);
    for (let spot = 0; spot < n; spot++) {
      found[spot] += Math.floor(this.foretold(found, weights, spot) + 0.5);
    }
    return found;
  }

  foretold(values, weights, spot) {
    const [first, second, third, fourth] = this.back;
    let total = 0;
    // Written out: this runs for every spot of every map.
    if (first[spot] > 0) {
      total += weights[0] * values[spot - first[spot]];
    }
    if (second[spot] > 0) {
      total += weights[1] * values[spot - second[spot]];
    }
    if (third[spot] > 0) {
      total += weights[2] * values[spot - third[spot]];
    }
    if (fourth[spot] > 0) {
      total += weights[3] * values[spot - fourth[spot]];
    }
    return total;
  }

  /* The values of a gene at every spot, NaN where none is known: low + step · steps. */
  async values(gene, low, step) {
    const { n, layer } = this;
    const numbers = wholeNumbers(await this.packed.bytes(layer.name, gene), n);
    const base = this.base(gene);
    const { weights } = layer.compact;
    const within = (value) => Math.min(layer.steps, Math.max(0, value));
    const differences = new Float64Array(n);
    for (let spot = 0; spot < n; spot++) {
      const expected = within(base[spot] + this.foretold(differences, weights, spot));
      differences[spot] = within(expected + numbers[spot]) - base[spot];
    }
    const values = new Float32Array(this.known.length);
    for (let spot = 0, place = 0; spot < values.length; spot++) {
      if (this.known[spot] === 0) {
        values[spot] = NaN;
      } else {
        values[spot] = low + step * (base[place] + differences[place]);
        place += 1;
      }
    }
    return values;
  }

  /* What the shared maps alone say of a gene, in steps. */
  base(gene) {
    const { maps, n } = this;
    const { compact, steps } = this.layer;
    const base = new Float64Array(n).fill(this.means[gene] * steps);
    maps.forEach((map, place) => {
      const part = this.loadings[gene * maps.length + place] / compact.unit;
      for (let spot = 0; spot < n; spot++) {
        base[spot] += part * map[spot];
      }
    });
    return base;
  }
}
