"use strict";

/* One view of the tissue with the spots over it: a viewer, a canvas, a legend, a line that tells of one spot. */
class Pane {
  constructor(report, root, number) {
    Object.assign(this, { report, root, number, layer: report.told.layers[0], gene: 0, spot: -1, limits: null });
    this.related = [];
    this.find = (name) => root.querySelector(`[data-part=${name}]`);
    this.canvas = this.find("spots");
    this.painter = new Painter(this.canvas, report.told.square);
    this.choices();
    this.legend();
    this.viewer = this.view();
    this.hover();
  }

  choices() {
    const { told } = this.report;
    const list = this.find("genes");
    list.id = `genes-${this.number}`;
    const entries = told.genes.map((text, place) => ({ text, note: structure(told.moran[place]) }));
    this.picker = new Picker(this.find("gene"), list, entries, (place) => this.set({ gene: place }));
    const select = this.find("layer");
    select.append(...told.layers.map((layer, place) => new Option(layer.label, String(place))));
    select.addEventListener("change", () => this.set({ layer: told.layers[Number(select.value)] }));
  }

  legend() {
    for (const end of [0, 1]) {
      const input = this.find(end === 0 ? "low" : "high");
      input.addEventListener("change", () => {
        const limits = [...this.limits];
        limits[end] = input.value === "" ? NaN : Number(input.value);
        if (Number.isFinite(limits[end]) && limits[0] <= limits[1]) {
          this.report.setLimits(this, limits);
        } else {
          this.tellLimits();
        }
      });
    }
    this.find("reset").addEventListener("click", () => this.report.setLimits(this, null));
  }

  view() {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const viewer = OpenSeadragon({
      element: this.find("tissue"),
      tileSources: { type: "image", url: this.report.tissue.src, buildPyramid: true },
      drawer: "canvas",
      showNavigationControl: false,
      animationTime: calm ? 0 : 0.4,
      visibilityRatio: 0.2,
      minZoomImageRatio: 0.5,
      maxZoomPixelRatio: 16,
      zoomPerScroll: 1.3,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    viewer.addHandler("canvas-key", (event) => {
      if (["r", "R", "f", "F"].includes(event.originalEvent.key)) {
        event.preventDefaultAction = true; // turning and mirroring: a map is read as it lies
      }
    });
    viewer.addHandler("open", () => {
      this.home(true);
      this.describe();
      this.report.opened(this);
    });
    viewer.addHandler("update-viewport", () => this.draw());
    viewer.addHandler("viewport-change", () => this.report.follow(this));
    viewer.addHandler("resize", () => requestAnimationFrame(() => this.report.settle()));
    for (const [name, change] of [["in", 1.5], ["out", 1 / 1.5]]) {
      this.find(name).addEventListener("click", () => {
        this.report.lead(this);
        viewer.viewport.zoomBy(change);
        viewer.viewport.applyConstraints();
      });
    }
    this.find("whole").addEventListener("click", () => {
      this.report.lead(this);
      this.home(false);
    });
    return viewer;
  }

  describe() {
    const surface = this.viewer.canvas;
    surface.setAttribute("role", "application");
    surface.setAttribute("aria-label", `Map ${this.number + 1}: arrows move it, + and − zoom, 0 shows all of it`);
  }

  hover() {
    const surface = this.find("surface");
    for (const kind of ["pointerdown", "wheel", "keydown"]) {
      surface.addEventListener(kind, () => this.report.lead(this), { capture: true, passive: true });
    }
    const point = (event) => {
      const box = surface.getBoundingClientRect();
      const place = this.place();
      const x = (event.clientX - box.left - place.left) / place.scale;
      const y = (event.clientY - box.top - place.top) / place.scale;
      this.report.point(this.report.nearest.find(x, y));
    };
    surface.addEventListener("pointermove", point);
    // A finger that was lifted has left, yet what it touched is to be read; and it moves only after it has touched.
    surface.addEventListener("pointerdown", point, { capture: true });
    surface.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.report.point(-1));
  }

  /* Show all spots. */
  home(immediately) {
    const { told, bounds } = this.report;
    const unit = told.image.scale / told.image.width;
    const margin = 1.5 * told.diameter;
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

  /* Where the slide lies on the screen: CSS px = left + scale · level-0 px. */
  place() {
    const { told } = this.report;
    const corner = this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const along = this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
    return { left: corner.x, top: corner.y, scale: ((along.x - corner.x) * told.image.scale) / told.image.width };
  }

  async set(change) {
    Object.assign(this, change);
    const { told, library } = this.report;
    const { layer, gene } = this;
    const values = await library.values(layer, gene);
    const related = [];
    for (const other of told.layers) {
      related.push({ label: other.label, values: await library.values(other, gene) });
    }
    if (layer !== this.layer || gene !== this.gene) {
      return; // chosen anew while this was being unpacked
    }
    Object.assign(this, { values, related });
    this.picker.show(gene);
    this.find("gene").disabled = !layer.genes;
    this.find("layer").value = String(told.layers.indexOf(layer));
    this.report.setLimits(this, null);
    this.report.changed(this);
  }

  get title() {
    return this.layer.genes ? this.report.told.genes[this.gene] : this.layer.label;
  }

  get usualLimits() {
    return this.layer.limits[this.layer.genes ? this.gene : 0];
  }

  takeLimits(limits) {
    this.limits = limits;
    this.tellLimits();
    this.colour();
  }

  tellLimits() {
    this.find("low").value = round(this.limits[0]);
    this.find("high").value = round(this.limits[1]);
  }

  /* Give each spot its colour, then draw. */
  colour() {
    if (this.values === undefined) {
      return;
    }
    const { certain, hidden } = this.report;
    this.spotPlaces = this.values.places(this.limits);
    if (certain !== null && hidden < Infinity) {
      for (let spot = 0; spot < this.spotPlaces.length; spot++) {
        if (certain.at(spot) > hidden) {
          this.spotPlaces[spot] = 257;
        }
      }
    }
    this.scale();
    this.words();
    this.draw();
  }

  scale() {
    const bar = this.find("bar");
    const context = bar.getContext("2d");
    const { colours } = this.report;
    const pixels = context.createImageData(256, 1);
    new Uint32Array(pixels.data.buffer).set(colours);
    bar.width = 256;
    bar.height = 1;
    context.putImageData(pixels, 0, 0);
  }

  words() {
    const { told } = this.report;
    const moran = this.layer.name === "predicted" ? structure(told.moran[this.gene]) : "";
    this.find("title").textContent = this.title;
    this.find("subtitle").textContent = [this.layer.genes ? this.layer.label : "", moran].filter(Boolean).join(" · ");
    this.root.setAttribute("aria-label", `Map ${this.number + 1}: ${this.title}`);
  }

  draw() {
    if (this.root.hidden || this.spotPlaces === undefined || !this.viewer.isOpen()) {
      return;
    }
    const { told, xy, colours, size } = this.report;
    const ratio = window.devicePixelRatio;
    const surface = this.find("surface");
    this.painter.resize(Math.round(surface.clientWidth * ratio), Math.round(surface.clientHeight * ratio));
    const place = this.place();
    const view = { left: place.left * ratio, top: place.top * ratio, scale: place.scale * ratio };
    const radius = Math.max(0.75, (told.diameter / 2) * size * view.scale);
    this.painter.paint(xy, view, radius, this.spotPlaces, colours);
    this.mark(place, radius / ratio);
    this.ruler(place);
  }

  mark(place, radius) {
    const ring = this.find("ring");
    ring.hidden = this.spot < 0;
    if (this.spot >= 0) {
      const { xy } = this.report;
      const side = 2 * radius + 4;
      ring.style.width = ring.style.height = `${side}px`;
      ring.style.transform =
        `translate(${place.left + place.scale * xy[2 * this.spot] - side / 2}px, ` +
        `${place.top + place.scale * xy[2 * this.spot + 1] - side / 2}px)`;
    }
  }

  /* A scale bar of 1, 2 or 5 · 10ⁿ µm, about a hundred pixels long. */
  ruler(place) {
    const { mpp } = this.report.told;
    const ruler = this.find("ruler");
    ruler.hidden = mpp === null;
    if (mpp !== null) {
      const most = (120 / place.scale) * mpp;
      const power = 10 ** Math.floor(Math.log10(most));
      const um = [5, 2, 1].map((step) => step * power).find((length) => length <= most);
      ruler.style.width = `${(um / mpp) * place.scale}px`;
      ruler.textContent = um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(1))} µm`;
    }
  }

  /* Tell of a spot, -1 for none. */
  tell(spot) {
    this.spot = spot;
    this.find("told").textContent = spot < 0 ? "Point at a spot to read its values." : this.sentence(spot);
    this.mark(this.place(), Math.max(1, ((this.report.told.diameter / 2) * this.report.size) * this.place().scale));
  }

  sentence(spot) {
    const { told, xy, names } = this.report;
    const values = this.related.map(({ label, values }) => `${label.toLowerCase()} ${values.text(spot)}`);
    const where = `x ${round(xy[2 * spot])}, y ${round(xy[2 * spot + 1])} px`;
    return [names[spot], ...(this.layer.genes ? [told.genes[this.gene]] : []), ...values, where].join(" · ");
  }
}

function round(value) {
  return String(Number(value.toPrecision(4)));
}

function structure(moran) {
  return moran === null ? "" : `Moran's I ${moran.toFixed(2)}`;
}
