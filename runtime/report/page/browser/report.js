"use strict";

/* The whole page: what is shown, how it is drawn, and what the maps have in common. */
class Report {
  constructor(told, packed, tissue) {
    Object.assign(this, { told, packed, tissue, leader: null, moved: false, size: 1, hidden: Infinity, certain: null });
    this.library = new Library(told, packed);
    this.panes = [];
    this.waiting = 0;
  }

  async start() {
    const { told, packed } = this;
    this.xy = await packed.floats("xy");
    this.names = await packed.lines("spots");
    this.bounds = boundsOf(this.xy);
    this.nearest = new Nearest(this.xy, Math.max(1, told.diameter));
    await this.readColours();
    this.layout = document.getElementById("maps");
    this.panes = [this.addPane(0), this.addPane(1)];
    this.controls();
    const measured = told.layers.findIndex((layer) => layer.name === "measured");
    await this.panes[0].set({ gene: 0, layer: told.layers[0] });
    await this.panes[1].set(measured < 0 ? { gene: Math.min(1, told.genes.length - 1) } : { layer: told.layers[measured] });
    this.setSideBySide(measured >= 0);
  }

  addPane(number) {
    const root = document.getElementById("map").content.firstElementChild.cloneNode(true);
    this.layout.append(root);
    root.hidden = false;
    return new Pane(this, root, number);
  }

  /* The time from opening the page to the first picture with tissue and spots stands in the browser's own record. */
  opened() {
    this.waiting += 1;
    if (this.waiting === 1) {
      requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("first-picture")));
    }
  }

  async readColours() {
    const bytes = await this.packed.bytes("colours");
    this.tables = this.told.colours.map((_, map) => {
      const table = new Uint32Array(256);
      for (let i = 0; i < 256; i++) {
        const [r, g, b] = bytes.subarray(768 * map + 3 * i, 768 * map + 3 * i + 3);
        table[i] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
      }
      return table;
    });
    this.colours = this.tables[0];
  }

  controls() {
    const { told } = this;
    const part = (name) => document.getElementById(name);
    const slider = (name, show) => {
      const input = part(name);
      const apply = () => {
        input.nextElementSibling.textContent = show(Number(input.value));
      };
      input.addEventListener("input", apply);
      apply();
    };
    const all = (selector, style, name) => (share) => {
      for (const found of document.querySelectorAll(selector)) {
        found.style[style] = String(share);
      }
      return `${Math.round(100 * share)} %`;
    };
    slider("opacity", all("[data-part=spots]", "opacity"));
    slider("fade", all("[data-part=tissue]", "opacity"));
    slider("size", (size) => {
      this.size = size;
      this.redraw();
      return `${Math.round(100 * size)} %`;
    });
    part("colours").append(...told.colours.map((label, place) => new Option(label, String(place))));
    part("colours").addEventListener("change", (event) => {
      this.colours = this.tables[Number(event.target.value)];
      this.panes.forEach((pane) => pane.colour());
    });
    part("two").addEventListener("change", (event) => this.setSideBySide(event.target.checked));
    part("same").addEventListener("change", () => this.panes.forEach((pane) => this.setLimits(pane, null)));
    part("picture").addEventListener("click", () => this.savePicture());
    this.spotPicker(part("spot"), part("spot-list"));
    this.certainty(part("certain"));
    this.structured(part("structured"));
  }

  spotPicker(input, list) {
    const entries = this.names.map((text) => ({ text, note: "" }));
    new Picker(input, list, entries, (spot) => {
      const { told, xy } = this;
      const unit = told.image.scale / told.image.width;
      this.lead(this.panes[0]);
      this.leader.viewer.viewport.panTo(new OpenSeadragon.Point(xy[2 * spot] * unit, xy[2 * spot + 1] * unit));
      this.point(spot);
      document.getElementById("said").textContent = this.shownPanes.map((pane) => pane.sentence(spot)).join("; ");
    });
  }

  /* A slider that leaves out the spots whose nearest reference spot is farthest. */
  async certainty(input) {
    const layer = this.told.layers.find(({ name }) => name === "nearest_distance");
    input.closest("label").hidden = layer === undefined;
    if (layer === undefined) {
      return;
    }
    const values = await this.library.values(layer, 0);
    const known = values.found.filter((value) => !Number.isNaN(value)).sort();
    const apply = () => {
      const left = Math.round(known.length * (1 - Number(input.value) / 100));
      this.certain = values;
      this.hidden = left >= known.length ? Infinity : known[Math.max(0, left - 1)];
      const gone = known.length - left;
      input.nextElementSibling.textContent = gone === 0 ? "none" : `${gone} of ${known.length}`;
      this.panes.forEach((pane) => pane.colour());
    };
    input.addEventListener("input", apply);
    apply();
  }

  structured(list) {
    this.told.genes.slice(0, 10).forEach((gene, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.gene = String(place);
      button.textContent = gene;
      button.title = structure(this.told.moran[place]);
      button.addEventListener("click", () => this.panes[0].set({ gene: place, layer: this.told.layers[0] }));
      const item = document.createElement("li");
      item.append(button);
      list.append(item);
    });
  }

  get shownPanes() {
    return this.panes.filter((pane) => !pane.root.hidden);
  }

  setSideBySide(two) {
    document.getElementById("two").checked = two;
    this.layout.classList.toggle("two", two);
    this.panes[1].root.hidden = !two;
    requestAnimationFrame(() => this.settle());
  }

  /* From now on the other map goes where `pane` goes. */
  lead(pane) {
    this.leader = pane;
    this.moved = true;
  }

  /* After a map has got another size: all spots again, or what the map that was moved shows. */
  settle() {
    if (this.moved) {
      this.follow(this.leader);
    } else {
      this.shownPanes.filter((pane) => pane.viewer.isOpen()).forEach((pane) => pane.home(true));
    }
    this.redraw();
  }

  /* Colours of `pane` run over `limits`, null for its usual ones; of both panes where they share a scale. */
  setLimits(pane, limits) {
    const ready = this.shownPanes.filter((one) => one.values !== undefined);
    if (!document.getElementById("same").checked || !ready.includes(pane)) {
      pane.takeLimits(limits ?? pane.usualLimits);
      return;
    }
    const usual = ready.map((one) => one.usualLimits);
    const both = [Math.min(...usual.map((one) => one[0])), Math.max(...usual.map((one) => one[1]))];
    ready.forEach((one) => one.takeLimits(limits ?? both));
  }

  /* Where measured stands beside predicted, both are of the same gene. */
  changed(pane) {
    const other = this.panes[1 - pane.number];
    const names = [pane.layer.name, other.layer.name].sort().join(" ");
    if (names === "measured predicted" && other.gene !== pane.gene) {
      other.set({ gene: pane.gene });
    }
    if (pane.number === 0) {
      for (const button of document.querySelectorAll("#structured button")) {
        button.setAttribute("aria-pressed", String(pane.layer.genes && Number(button.dataset.gene) === pane.gene));
      }
    }
    document.getElementById("said").textContent = `${pane.title} is shown on map ${pane.number + 1}`;
  }

  redraw() {
    this.panes.forEach((pane) => pane.draw());
  }

  /* The other map shows the same part of the tissue as `pane`, if that is the one that was moved. */
  follow(pane) {
    if (pane !== this.leader) {
      return;
    }
    for (const other of this.shownPanes.filter((one) => one !== pane && one.viewer.isOpen())) {
      other.viewer.viewport.zoomTo(pane.viewer.viewport.getZoom(true), null, true);
      other.viewer.viewport.panTo(pane.viewer.viewport.getCenter(true), true);
    }
  }

  point(spot) {
    if (this.panes.some((pane) => pane.spot !== spot)) {
      this.shownPanes.forEach((pane) => pane.tell(spot));
    }
  }

  /* What is on the screen as a PNG: tissue, spots and the name of each map. */
  savePicture() {
    const parts = this.shownPanes.map((pane) => [pane, pane.viewer.drawer.canvas]);
    const ratio = window.devicePixelRatio;
    const width = parts.reduce((sum, [pane]) => sum + pane.canvas.width, 0);
    const head = Math.round(28 * ratio);
    const picture = document.createElement("canvas");
    picture.width = width;
    picture.height = Math.max(...parts.map(([pane]) => pane.canvas.height)) + head;
    const context = picture.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, picture.width, picture.height);
    let left = 0;
    for (const [pane, tissue] of parts) {
      context.globalAlpha = Number(document.getElementById("fade").value);
      context.drawImage(tissue, left, head, pane.canvas.width, pane.canvas.height);
      context.globalAlpha = Number(document.getElementById("opacity").value);
      context.drawImage(pane.canvas, left, head);
      context.globalAlpha = 1;
      context.fillStyle = "#1c1c1e";
      context.font = `600 ${Math.round(15 * ratio)}px sans-serif`;
      const limits = pane.limits.map(round).join(" to ");
      context.fillText(`${pane.title} (${pane.layer.label.toLowerCase()}, ${limits})`, left + 8 * ratio, 20 * ratio);
      left += pane.canvas.width;
    }
    const link = document.createElement("a");
    link.href = picture.toDataURL("image/png");
    link.download = `${this.told.title}.${this.shownPanes.map((pane) => pane.title).join("-")}.png`;
    link.click();
  }
}

function boundsOf(xy) {
  const bounds = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  for (let i = 0; i < xy.length; i += 2) {
    bounds.left = Math.min(bounds.left, xy[i]);
    bounds.right = Math.max(bounds.right, xy[i]);
    bounds.top = Math.min(bounds.top, xy[i + 1]);
    bounds.bottom = Math.max(bounds.bottom, xy[i + 1]);
  }
  return bounds;
}

window.addEventListener("DOMContentLoaded", async () => {
  const text = (id) => document.getElementById(id).textContent;
  if (typeof DecompressionStream === "undefined") {
    document.getElementById("maps").textContent =
      "This browser is too old to unpack the maps; Chrome or Edge from 80, Firefox from 113 and Safari from 16.4 on do.";
    return;
  }
  const told = JSON.parse(text("told"));
  const report = new Report(told, new Packed(text("packed"), told.blocks), document.getElementById("picture-of-tissue"));
  window.report = report;
  window.addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details")) {
      one.open ||= one.querySelector("table") === null;
    }
  });
  await report.start();
});
