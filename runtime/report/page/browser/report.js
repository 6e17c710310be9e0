"use strict";

/* The page: two panes, the controls they share, the decoded data. */
class Report {
  constructor(metadata, data, tissue) {
    Object.assign(this, { metadata, data, tissue, leader: null, spotSize: 1, maxError: Infinity, errors: null });
    this.cache = new ValueCache(data);
    this.panes = [];
    this.openViewers = 0;
  }

  async start() {
    const { metadata, data } = this;
    this.xy = await data.floats(metadata.blocks.xy);
    this.names = await data.lines(metadata.blocks.spots);
    this.outside = unpackBits(await data.bytes(metadata.blocks.outside), this.names.length);
    this.bounds = boundsOf(this.xy);
    this.nearest = new Nearest(this.xy, Math.max(1, metadata.spot_diameter_px));
    await this.readColormaps();
    this.layout = document.getElementById("maps");
    this.panes = [this.addPane(0), this.addPane(1)];
    this.addControls();
    const measured = metadata.layers.find((layer) => layer.name === "measured");
    const [first, second] = [...metadata.structured, 0, Math.min(1, metadata.genes.length - 1)];
    await this.panes[0].show({ gene: first, layer: metadata.layers[0] });
    await this.panes[1].show(measured ? { gene: first, layer: measured } : { gene: second });
    this.setSideBySide(measured !== undefined);
  }

  addPane(number) {
    const root = document.getElementById("map").content.firstElementChild.cloneNode(true);
    this.layout.append(root);
    return new Pane(this, root, number);
  }

  /* Mark the first picture in the browser's performance record, for the benchmark. */
  viewerOpened() {
    this.openViewers += 1;
    if (this.openViewers === 1) {
      requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("first-picture")));
    }
  }

  async readColormaps() {
    const bytes = await this.data.bytes(this.metadata.blocks.colormaps);
    this.colormaps = this.metadata.colormaps.map((_, map) => {
      const table = new Uint32Array(256);
      for (let i = 0; i < 256; i++) {
        const [r, g, b] = bytes.subarray(768 * map + 3 * i, 768 * map + 3 * i + 3);
        table[i] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
      }
      return table;
    });
    this.colormap = this.colormaps[0];
  }

  addControls() {
    const control = (id) => document.getElementById(id);
    const addSlider = (id, apply) => {
      const input = control(id);
      const update = () => {
        input.nextElementSibling.textContent = apply(Number(input.value));
      };
      input.addEventListener("input", update);
      update();
    };
    const percent = (share) => `${Math.round(100 * share)} %`;
    const setOpacity = (part) => (opacity) => {
      for (const element of document.querySelectorAll(`[data-part=${part}]`)) {
        element.style.opacity = String(opacity);
      }
      return percent(opacity);
    };
    addSlider("spot-opacity", setOpacity("spots"));
    addSlider("tissue-opacity", setOpacity("tissue"));
    addSlider("spot-size", (size) => {
      this.spotSize = size;
      this.redraw();
      return percent(size);
    });
    control("colormap").append(...this.metadata.colormaps.map((label, index) => new Option(label, String(index))));
    control("colormap").addEventListener("change", (event) => {
      this.colormap = this.colormaps[Number(event.target.value)];
      this.panes.forEach((pane) => pane.recolor());
    });
    control("side-by-side").addEventListener("change", (event) => this.setSideBySide(event.target.checked));
    control("shared-limits").addEventListener("change", () => this.panes.forEach((pane) => this.setLimits(pane, null)));
    control("save-png").addEventListener("click", () => this.savePng());
    this.addSpotPicker(control("spot-name"), control("spot-list"));
    this.addErrorFilter(control("hide-errors"));
    this.addGeneButtons(control("structured"));
  }

  addSpotPicker(input, list) {
    const entries = this.names.map((text) => ({ text, note: "" }));
    new Picker(input, list, entries, (spot) => {
      const { image } = this.metadata;
      const unit = image.scale / image.width;
      this.setLeader(this.panes[0]);
      const center = new OpenSeadragon.Point(this.xy[2 * spot] * unit, this.xy[2 * spot + 1] * unit);
      this.leader.viewer.viewport.panTo(center);
      this.selectSpot(spot);
      this.announce(this.visiblePanes.map((pane) => pane.describeSpot(spot)).join("; "));
    });
  }

  /* A slider that hides the spots of the largest expected error; only a calibrated map has it. */
  async addErrorFilter(input) {
    const layer = this.metadata.layers.find(({ name }) => name === "expected_error");
    input.closest("label").hidden = layer === undefined;
    if (layer === undefined) {
      return;
    }
    this.errors = await this.cache.values(layer, 0);
    const sorted = this.errors.array.filter((value) => !Number.isNaN(value)).sort();
    const update = () => {
      const count = Math.round(sorted.length * (1 - Number(input.value) / 100));
      this.maxError = count >= sorted.length ? Infinity : sorted[Math.max(0, count - 1)];
      // Of equal errors all stay, and unknown ones are hidden with the largest.
      const { array } = this.errors;
      const hidden = this.maxError === Infinity ? 0 : array.filter((value) => !(value <= this.maxError)).length;
      input.nextElementSibling.textContent = hidden === 0 ? "none" : `${hidden} of ${array.length}`;
      this.panes.forEach((pane) => pane.recolor());
    };
    input.addEventListener("input", update);
    update();
  }

  addGeneButtons(list) {
    for (const gene of this.metadata.structured) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.gene = String(gene);
      button.textContent = this.metadata.genes[gene];
      button.title = formatMoran(this.metadata.morans_i[gene]);
      button.addEventListener("click", () => this.panes[0].show({ gene, layer: this.metadata.layers[0] }));
      const item = document.createElement("li");
      item.append(button);
      list.append(item);
    }
  }

  get visiblePanes() {
    return this.panes.filter((pane) => !pane.root.hidden);
  }

  setSideBySide(on) {
    document.getElementById("side-by-side").checked = on;
    this.layout.classList.toggle("two", on);
    this.panes[1].root.hidden = !on;
    requestAnimationFrame(() => this.relayout());
  }

  /* The pane the user moved last; the other pane follows it. */
  setLeader(pane) {
    this.leader = pane;
  }

  /* After a resize: keep the view the user chose, else show all spots. */
  relayout() {
    if (this.leader !== null) {
      this.follow(this.leader);
    } else {
      this.visiblePanes.filter((pane) => pane.viewer.isOpen()).forEach((pane) => pane.home(true));
    }
    this.redraw();
  }

  /* Set a pane's color limits, null: the defaults; of both panes if they share a scale. */
  setLimits(pane, limits) {
    const ready = this.visiblePanes.filter((one) => one.values !== undefined);
    if (!document.getElementById("shared-limits").checked || !ready.includes(pane)) {
      pane.applyLimits(limits ?? pane.defaultLimits);
      return;
    }
    const defaults = ready.map((one) => one.defaultLimits);
    const joint = [Math.min(...defaults.map((one) => one[0])), Math.max(...defaults.map((one) => one[1]))];
    ready.forEach((one) => one.applyLimits(limits ?? joint));
  }

  paneChanged(pane) {
    const other = this.panes[1 - pane.number];
    const names = [pane.layer.name, other.layer.name].sort().join(" ");
    if (names === "measured predicted" && other.gene !== pane.gene) {
      other.show({ gene: pane.gene }); // predicted and measured are compared gene by gene
    }
    if (pane.number === 0) {
      for (const button of document.querySelectorAll("#structured button")) {
        button.setAttribute("aria-pressed", String(pane.layer.genes && Number(button.dataset.gene) === pane.gene));
      }
    }
    this.announce(`Map ${pane.number + 1} shows ${pane.title}`);
  }

  /* Tell screen readers. */
  announce(text) {
    document.getElementById("status").textContent = text;
  }

  redraw() {
    this.panes.forEach((pane) => pane.draw());
  }

  /* Move the other pane to the view of `pane` if that is the leader. */
  follow(pane) {
    if (pane !== this.leader) {
      return;
    }
    for (const other of this.visiblePanes.filter((one) => one !== pane && one.viewer.isOpen())) {
      other.viewer.viewport.zoomTo(pane.viewer.viewport.getZoom(true), null, true);
      other.viewer.viewport.panTo(pane.viewer.viewport.getCenter(true), true);
    }
  }

  selectSpot(spot) {
    if (this.panes.some((pane) => pane.spot !== spot)) {
      this.visiblePanes.forEach((pane) => pane.selectSpot(spot));
    }
  }

  /* Save the visible maps with their titles, color scales and scale bars. */
  savePng() {
    const panes = this.visiblePanes;
    const ratio = window.devicePixelRatio;
    const [head, foot] = [28, 34].map((side) => Math.round(side * ratio));
    const picture = document.createElement("canvas");
    picture.width = panes.reduce((sum, { canvas }) => sum + canvas.width, 0);
    picture.height = Math.max(...panes.map(({ canvas }) => canvas.height)) + head + foot;
    const context = picture.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, picture.width, picture.height);
    let left = 0;
    for (const pane of panes) {
      const { width, height } = pane.canvas;
      context.globalAlpha = Number(document.getElementById("tissue-opacity").value);
      context.drawImage(pane.viewer.drawer.canvas, left, head, width, height);
      context.globalAlpha = Number(document.getElementById("spot-opacity").value);
      context.drawImage(pane.canvas, left, head);
      context.globalAlpha = 1;
      context.fillStyle = INK;
      context.font = `600 ${Math.round(15 * ratio)}px sans-serif`;
      const kind = pane.layer.genes ? ` (${pane.layer.label.toLowerCase()})` : "";
      context.fillText(pane.title + kind, left + 8 * ratio, 20 * ratio, width - 16 * ratio);
      pane.drawScaleBarOn(context, left, head + height, ratio);
      pane.drawColorScaleOn(context, left, head + height, ratio);
      left += width;
    }
    const link = document.createElement("a");
    link.href = picture.toDataURL("image/png");
    link.download = `${this.metadata.title}.${panes.map((pane) => pane.title).join("-")}.png`;
    link.click();
  }
}

/* Bits, the highest of each byte first → 0 or 1 each. */
function unpackBits(bytes, count) {
  return Uint8Array.from({ length: count }, (_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
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
      "This browser is too old to decompress the maps; use Chrome or Edge 80, Firefox 113, Safari 16.4 or newer.";
    return;
  }
  const tissue = document.getElementById("tissue-image");
  const report = new Report(JSON.parse(text("metadata")), new DataBlocks(text("data")), tissue);
  window.report = report;
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) {
      details.open ||= details.querySelector("table") === null; // print everything but the long tables
    }
  });
  await report.start();
});
