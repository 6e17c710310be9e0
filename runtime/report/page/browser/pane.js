"use strict";

const READOUT_HINT = "Point at a spot to read its values.";
const INK = "#1c1c1e";

/* One view of the tissue: viewer, canvas with the spots, legend, readout of a spot. */
class Pane {
  constructor(report, root, number) {
    Object.assign(this, { report, root, number, layer: report.metadata.layers[0], gene: 0, spot: -1, limits: null });
    this.readout = [];
    this.part = (name) => root.querySelector(`[data-part=${name}]`);
    this.canvas = this.part("spots");
    this.painter = new Painter(this.canvas, report.metadata.square);
    this.addSelectors();
    this.addLegend();
    this.viewer = this.createViewer();
    this.addPointer();
  }

  addSelectors() {
    const { metadata } = this.report;
    const list = this.part("genes");
    list.id = `genes-${this.number}`;
    const entries = metadata.genes.map((text, gene) => ({
      text,
      note: [formatExpected(metadata, gene), formatRange(metadata.layers[0], gene), formatMoran(metadata.morans_i[gene])]
        .filter(Boolean)
        .join(" · "),
      dim: metadata.reliable !== null && !metadata.reliable[gene],
    }));
    this.picker = new Picker(this.part("gene"), list, entries, (gene) => this.show({ gene }));
    const select = this.part("layer");
    select.append(...metadata.layers.map((layer, index) => new Option(layer.label, String(index))));
    select.addEventListener("change", () => this.show({ layer: metadata.layers[Number(select.value)] }));
  }

  addLegend() {
    for (const end of [0, 1]) {
      const input = this.part(end === 0 ? "low" : "high");
      input.addEventListener("change", () => {
        const limits = [...this.limits];
        limits[end] = input.value === "" ? NaN : Number(input.value);
        if (Number.isFinite(limits[end]) && limits[0] <= limits[1]) {
          this.report.setLimits(this, limits);
        } else {
          this.showLimits();
        }
      });
    }
    this.part("reset").addEventListener("click", () => this.report.setLimits(this, null));
  }

  createViewer() {
    const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const viewer = OpenSeadragon({
      element: this.part("tissue"),
      tileSources: { type: "image", url: this.report.tissue.src, buildPyramid: true },
      drawer: "canvas",
      showNavigationControl: false,
      animationTime: reducedMotion ? 0 : 0.4,
      visibilityRatio: 0.2,
      minZoomImageRatio: 0.5,
      maxZoomPixelRatio: 16,
      zoomPerScroll: 1.3,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    viewer.addHandler("canvas-key", (event) => {
      if (["r", "R", "f", "F"].includes(event.originalEvent.key)) {
        event.preventDefaultAction = true; // no rotating or flipping: the spots would not follow
      }
    });
    viewer.addHandler("open", () => {
      this.home(true);
      this.describeSurface();
      this.report.viewerOpened();
    });
    viewer.addHandler("update-viewport", () => this.draw());
    viewer.addHandler("viewport-change", () => this.report.follow(this));
    viewer.addHandler("resize", () => requestAnimationFrame(() => this.report.relayout()));
    for (const [name, factor] of [["in", 1.5], ["out", 1 / 1.5]]) {
      this.part(name).addEventListener("click", () => {
        this.report.setLeader(this);
        viewer.viewport.zoomBy(factor);
        viewer.viewport.applyConstraints();
      });
    }
    this.part("fit").addEventListener("click", () => {
      this.report.setLeader(this);
      this.home(false);
    });
    return viewer;
  }

  describeSurface() {
    const surface = this.viewer.canvas;
    surface.setAttribute("role", "application");
    surface.setAttribute("aria-label", `Map ${this.number + 1}: arrow keys pan, + and − zoom, 0 shows all spots`);
  }

  addPointer() {
    const surface = this.part("surface");
    for (const kind of ["pointerdown", "wheel", "keydown"]) {
      surface.addEventListener(kind, () => this.report.setLeader(this), { capture: true, passive: true });
    }
    const point = (event) => {
      const box = surface.getBoundingClientRect();
      const view = this.view();
      const x = (event.clientX - box.left - view.left) / view.scale;
      const y = (event.clientY - box.top - view.top) / view.scale;
      this.report.selectSpot(this.report.nearest.find(x, y));
    };
    surface.addEventListener("pointermove", point);
    // Touch has no hover: select on touch, and keep the readout after the finger is lifted.
    surface.addEventListener("pointerdown", point, { capture: true });
    surface.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.report.selectSpot(-1));
  }

  /* Show all spots. */
  home(immediately) {
    const { metadata, bounds } = this.report;
    const unit = metadata.image.scale / metadata.image.width;
    const margin = 1.5 * metadata.spot_diameter_px;
    this.viewer.viewport.fitBounds(
      new OpenSeadragon.Rect(
        (bounds.left - margin) * unit,
        (bounds.top - margin) * unit,
        (bounds.right - bounds.left + 2 * margin) * unit,
        (bounds.bottom - bounds.top + 2 * margin) * unit,
      ),
      immediately,
    );
  }

  /* The slide on the screen: CSS px = left + scale · level-0 px. */
  view() {
    const { image } = this.report.metadata;
    const origin = this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const unit = this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
    return { left: origin.x, top: origin.y, scale: ((unit.x - origin.x) * image.scale) / image.width };
  }

  /* Show another gene or layer: {gene}, {layer} or both. */
  async show(change) {
    Object.assign(this, change);
    const { metadata, cache } = this.report;
    const { layer, gene } = this;
    const values = await cache.values(layer, gene);
    const readout = [];
    for (const other of metadata.layers) {
      readout.push({ label: other.label, values: await cache.values(other, gene) });
    }
    if (layer !== this.layer || gene !== this.gene) {
      return; // another selection was made while this one was decoded
    }
    Object.assign(this, { values, readout });
    this.picker.show(gene);
    this.part("gene").disabled = !layer.genes;
    this.part("layer").value = String(metadata.layers.indexOf(layer));
    this.report.setLimits(this, null);
    this.report.paneChanged(this);
  }

  get title() {
    return this.layer.genes ? this.report.metadata.genes[this.gene] : this.layer.label;
  }

  get defaultLimits() {
    return this.layer.channels[this.layer.genes ? this.gene : 0].limits;
  }

  applyLimits(limits) {
    this.limits = limits;
    this.showLimits();
    this.recolor();
  }

  showLimits() {
    this.part("low").value = round(this.limits[0]);
    this.part("high").value = round(this.limits[1]);
  }

  recolor() {
    if (this.values === undefined) {
      return;
    }
    const { errors, maxError } = this.report;
    this.colorIndices = this.values.colorIndices(this.limits);
    if (maxError < Infinity) {
      for (let spot = 0; spot < this.colorIndices.length; spot++) {
        // Unknown errors are hidden first.
        if (!(errors.at(spot) <= maxError)) {
          this.colorIndices[spot] = HIDDEN;
        }
      }
    }
    this.drawColorBar();
    this.showTitle();
    this.draw();
  }

  drawColorBar() {
    const bar = this.part("bar");
    const context = bar.getContext("2d");
    const pixels = context.createImageData(256, 1);
    new Uint32Array(pixels.data.buffer).set(this.report.colormap);
    bar.width = 256;
    bar.height = 1;
    context.putImageData(pixels, 0, 0);
  }

  showTitle() {
    const { metadata } = this.report;
    const predicted = this.layer.name === "predicted";
    const notes = predicted ? [formatExpected(metadata, this.gene), formatMoran(metadata.morans_i[this.gene])] : [];
    this.part("title").textContent = this.title;
    this.part("subtitle").textContent = [this.layer.genes ? this.layer.label : "", ...notes].filter(Boolean).join(" · ");
    this.root.setAttribute("aria-label", `Map ${this.number + 1}: ${this.title}`);
  }

  draw() {
    if (this.root.hidden || this.colorIndices === undefined || !this.viewer.isOpen()) {
      return;
    }
    const { metadata, xy, colormap, spotSize } = this.report;
    const ratio = window.devicePixelRatio;
    const surface = this.part("surface");
    this.painter.resize(Math.round(surface.clientWidth * ratio), Math.round(surface.clientHeight * ratio));
    const view = this.view();
    const deviceView = { left: view.left * ratio, top: view.top * ratio, scale: view.scale * ratio };
    const radius = Math.max(0.75, (metadata.spot_diameter_px / 2) * spotSize * deviceView.scale);
    this.painter.paint(xy, deviceView, radius, this.colorIndices, colormap, this.report.outside);
    this.drawMarker(view, radius / ratio);
    this.drawScaleBar(view);
  }

  /* A ring around the selected spot. */
  drawMarker(view, radius) {
    const marker = this.part("marker");
    marker.hidden = this.spot < 0;
    if (this.spot >= 0) {
      const { xy } = this.report;
      const side = 2 * radius + 4;
      marker.style.width = marker.style.height = `${side}px`;
      marker.style.transform =
        `translate(${view.left + view.scale * xy[2 * this.spot] - side / 2}px, ` +
        `${view.top + view.scale * xy[2 * this.spot + 1] - side / 2}px)`;
    }
  }

  /* A bar of 1, 2 or 5 · 10ⁿ µm, about a hundred pixels long. */
  drawScaleBar(view) {
    const { mpp } = this.report.metadata;
    const bar = this.part("scale-bar");
    bar.hidden = mpp === null;
    if (mpp !== null) {
      const longest = (120 / view.scale) * mpp;
      const power = 10 ** Math.floor(Math.log10(longest));
      const um = [5, 2, 1].map((step) => step * power).find((length) => length <= longest);
      bar.style.width = `${(um / mpp) * view.scale}px`;
      bar.textContent = um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(1))} µm`;
    }
  }

  /* Draw the scale bar on a saved picture, in the lower left corner of the map that ends at `bottom`. */
  drawScaleBarOn(context, left, bottom, ratio) {
    const bar = this.part("scale-bar");
    if (bar.hidden) {
      return;
    }
    const [x, y, width] = [left + 14 * ratio, bottom - 15 * ratio, parseFloat(bar.style.width) * ratio];
    context.fillStyle = "rgb(255 255 255 / 70%)";
    context.fillRect(x, y - 18 * ratio, width, 18 * ratio);
    context.fillStyle = INK;
    context.fillRect(x, y, width, 3 * ratio);
    context.font = `${Math.round(12 * ratio)}px sans-serif`;
    context.textAlign = "center";
    context.fillText(bar.textContent, x + width / 2, y - 5 * ratio);
    context.textAlign = "left";
  }

  /* Draw the color scale on a saved picture, below `top`: its limits, and the colors between them. */
  drawColorScaleOn(context, left, top, ratio) {
    const [low, high] = this.limits.map(round);
    const [margin, line] = [8 * ratio, top + 22 * ratio];
    context.fillStyle = INK;
    context.font = `${Math.round(12 * ratio)}px sans-serif`;
    const begin = left + margin + context.measureText(low).width + margin;
    const end = left + this.canvas.width - margin - context.measureText(high).width;
    context.fillText(low, left + margin, line);
    context.fillText(high, end, line);
    context.drawImage(this.part("bar"), begin, line - 11 * ratio, end - margin - begin, 13 * ratio);
  }

  /* Mark a spot and show its values; -1: none. */
  selectSpot(spot) {
    const { metadata, spotSize } = this.report;
    const view = this.view();
    this.spot = spot;
    this.part("readout").textContent = spot < 0 ? READOUT_HINT : this.describeSpot(spot);
    this.drawMarker(view, Math.max(1, (metadata.spot_diameter_px / 2) * spotSize * view.scale));
  }

  describeSpot(spot) {
    const { metadata, xy, names } = this.report;
    const values = this.readout.map(({ label, values }) => `${label.toLowerCase()} ${values.text(spot)}`);
    if (this.report.outside[spot] === 1) {
      values.push("outside: unlike the tissue the model was calibrated on");
    }
    const position = `x ${round(xy[2 * spot])}, y ${round(xy[2 * spot + 1])} px`;
    return [names[spot], ...(this.layer.genes ? [metadata.genes[this.gene]] : []), ...values, position].join(" · ");
  }
}

function round(value) {
  return String(Number(value.toPrecision(4)));
}

/* Expected r of a gene, and whether it is reliable; "" where the map is not calibrated. */
function formatExpected({ expected_r, reliable }, gene) {
  if (expected_r === null) {
    return "";
  }
  const r = expected_r[gene] === null ? "unknown" : expected_r[gene].toFixed(2);
  return `expected r ${r}${reliable[gene] ? "" : ", not reliable"}`;
}

function formatRange({ channels, steps }, gene) {
  const { low, step } = channels[gene];
  return `${round(low)} to ${round(low + steps * step)}`;
}

function formatMoran(moran) {
  return moran === null ? "" : `Moran's I ${moran.toFixed(2)}`;
}
