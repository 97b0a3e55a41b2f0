"use strict";
/* Draws the figures of a page (report/figures/drawing.py) with Vega-Lite, and lets a reader look closer: what lies under
   the pointer, zoom, hiding, another axis, saving. Colours are the page's CSS variables, so they follow its theme. */
(() => {
  const page = JSON.parse(document.getElementById("figures").textContent);
  const parts = [];
  /* Data with every reference {"$": n} replaced by what it stands for. */
  const whole = (node) => {
    if (node === null || typeof node !== "object") return node;
    if (Array.isArray(node)) return node.map(whole);
    if ("$" in node) return parts[node.$];
    return Object.fromEntries(Object.entries(node).map(([name, value]) => [name, whole(value)]));
  };
  for (const part of page.shared) parts.push(whole(part));
  const PHONE = 480; /* pixels; a narrower figure has no names at line ends, and those of rows above them */
  const FEW = 4; /* more models than these can be shown and hidden all at once */

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "click") element.addEventListener("click", value);
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };
  const toggle = (text, pressed, act) => {
    const button = make("button", { type: "button", "aria-pressed": String(pressed) }, text);
    button.addEventListener("click", () => {
      const now = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(now));
      act(now);
    });
    return button;
  };
  const choice = (words, act) => {
    const buttons = words.map((word, i) =>
      make("button", { type: "button", "aria-pressed": String(i === 0), click: () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === buttons[i])));
        act(word);
      } }, word));
    return make("span", { class: "choice", role: "group", "aria-label": "over what" }, ...buttons);
  };

  /* One box for all figures that says what lies under the pointer. */
  const tip = document.getElementById("tip") ?? make("div", { id: "tip", role: "tooltip", hidden: "" });
  if (!tip.isConnected) document.body.append(tip);
  const show = (event, title, rows) => {
    const lines = rows.filter(([, value]) => value !== "" && value !== undefined)
      .map(([name, value]) => make("div", {}, make("span", {}, name), make("b", {}, value)));
    tip.replaceChildren(...(title ? [make("strong", {}, title)] : []), ...lines);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
  };
  const hide = () => { tip.hidden = true; };
  const number = (value) => String(Number(value.toPrecision(6))).replace("-", "−");

  const pen = document.createElement("canvas").getContext("2d");
  const measure = (text) => {
    pen.font = `600 13px ${page.config.font}`;
    return pen.measureText(text).width;
  };

  /* Lines as the rows that a specification reads; columns.py, `datasets`, does the same. */
  const rowsOf = (series) => {
    const lines = [], bands = [];
    series.forEach(({ m, s, c, d, t, f, x, y, band }, k) => {
      const same = { m, s, c, d, t, f, k };
      x.forEach((at, i) => lines.push({ ...same, x: at, y: y[i] }));
      if (band) band.x.forEach((at, i) => bands.push({ ...same, x: at, lo: band.lo[i], hi: band.hi[i] }));
    });
    return { lines, bands, hover: [] };
  };

  class Figure {
    constructor(box) {
      this.box = box;
      this.plot = box.querySelector(".plot");
      this.data = whole(page.figures[box.dataset.figure]);
      this.over = this.data.views && Object.keys(this.data.views)[0];
      this.little = box.classList.contains("little");
      this.hidden = new Set();
      this.seeds = true;
      this.logX = this.logY = undefined;
      this.seen = null;
      if (this.data.views) this.listen();
      this.furnish();
    }

    get lines() { return this.data.views[this.over]; }

    /* The whole specification as it stands: data, theme, size, and what the reader chose. */
    specification() {
      const room = this.plot.clientWidth;
      if (!this.data.views) {
        const { spec, fixed, across } = room < PHONE ? this.data.narrow : this.data.wide;
        const width = Math.max(80, Math.floor((room - fixed) / across));
        const way = spec.hconcat ? "hconcat" : "vconcat";
        return { ...spec, [way]: spec[way].map((panel) => ({ ...panel, width })), config: page.config };
      }
      const { spec: stored, series, margin, logs } = this.lines;
      const narrow = room < PHONE;
      const spec = structuredClone(stored);
      if (narrow) spec.layer = spec.layer.filter((layer) => layer.name !== "ends");
      for (const [axis, log] of [["x", this.logX], ["y", this.logY]]) {
        const scale = spec.encoding[axis].scale;
        if (log === undefined || !logs[axis] || log === (scale.type === "log")) continue;
        scale.type = log ? "log" : "linear";
        scale.domain = log ? logs[axis].domain : this.linear(axis);
        spec.encoding[axis].axis.labelExpr = log ? logs[axis].numbers : page.numbers;
        if (axis === "y") {
          const place = log ? "log_place" : "place";
          for (const layer of spec.layer) if (layer.name === "ends") layer.encoding.y.field = place;
        }
      }
      const chosen = { hidden: [...this.hidden], seeds: this.seeds };
      for (const param of spec.params) if (param.name in chosen) param.value = chosen[param.name];
      const padding = { ...margin, right: margin.right + (narrow ? 0 : this.names(spec)) };
      const width = Math.max(80, room - padding.left - padding.right);
      return { ...spec, width, autosize: "none", padding, datasets: rowsOf(series), config: page.config };
    }

    /* Width of the names at the ends of lines. */
    names(spec) {
      const texts = spec.layer.filter((layer) => layer.name === "ends").flatMap((layer) => layer.data.values);
      return Math.ceil(Math.max(0, ...texts.map((row) => measure(row.text))));
    }

    /* The range of a linear axis where the chart itself has a logarithmic one. */
    linear(axis) {
      const values = this.lines.series.flatMap((line) => line[axis]);
      return [0, Math.max(...values)];
    }

    draw() {
      this.view?.finalize();
      this.width = this.plot.clientWidth;
      if (!this.width) return;
      const spec = vegaLite.compile(this.specification()).spec;
      this.view = new vega.View(vega.parse(spec), { renderer: "svg", container: this.plot })
        .tooltip((_, event, item, value) => (value ? show(event, value.name, Object.entries(value).filter(
          ([name]) => name !== "name")) : this.data.views || hide()))
        .run();
      this.plot.style.minHeight = "";
    }

    change() {
      if (this.view) this.draw();
    }

    set(signal, value) {
      this.view?.signal(signal, value).run();
    }

    /* What lies nearest to the pointer, and a ring around it. */
    listen() {
      this.plot.addEventListener("pointermove", (event) => {
        if (!this.view) return;
        if (event.movementX || event.movementY) this.active = true;
        this.point(event);
      });
      /* The wheel zooms only once the pointer was moved over the chart, so that who scrolls by is not held up. */
      this.plot.addEventListener("wheel", (event) => this.active || event.stopPropagation(), { capture: true });
      this.plot.addEventListener("pointerdown", (event) => this.point(event));
      const leave = () => {
        this.active = false;
        this.leave();
      };
      this.plot.addEventListener("pointerleave", leave);
      addEventListener("scroll", leave, { passive: true });
    }

    leave() {
      if (!this.seen) return;
      this.seen = null;
      hide();
      this.view?.data("hover", []).run();
    }

    point(event) {
      const frame = this.plot.querySelector("svg").getBoundingClientRect();
      const [left, top] = this.view.origin(), padding = this.view.padding();
      const at = [event.clientX - frame.left - left - padding.left, event.clientY - frame.top - top - padding.top];
      const found = this.nearest(...at);
      if (!found) return this.leave();
      const { line, i } = found, { x, y } = this.lines;
      show(event, line.m || line.n?.[i] || "", [
        ["", line.m && line.n ? line.n[i] : ""],
        ["seed", line.s],
        [x, number(line.x[i])],
        [y, number(line.y[i])],
        ["as measured", line.o && number(line.o[i])],
      ]);
      if (this.seen && this.seen.line === line && this.seen.i === i) return;
      this.seen = found;
      this.view.data("hover", [{ x: line.x[i], y: line.y[i], c: line.c }]).run();
    }

    nearest(left, top) {
      const [width, height] = [this.view.signal("width"), this.view.signal("height")];
      if (left < -20 || left > width + 20 || top < -20 || top > height + 20) return null;
      const [across, down] = [this.view.scale("x"), this.view.scale("y")];
      let found = null, least = Infinity;
      for (const line of this.lines.series) {
        if (this.hidden.has(line.m) || (!line.t && line.s && !this.seeds)) continue;
        line.x.forEach((x, i) => {
          const [px, py] = [across(x), down(line.y[i])];
          if (px < -1 || px > width + 1 || py < -1 || py > height + 1) return;
          const distance = (px - left) ** 2 + (py - top) ** 2 + (line.t ? 0 : 16);
          if (distance < least) [least, found] = [distance, { line, i }];
        });
      }
      return found;
    }

    /* The legend and the tools below a figure. */
    furnish() {
      const tools = make("div", { class: "tools" });
      if (this.data.views && !this.little) {
        this.legend = make("div", { class: "legend" });
        this.box.append(this.legend);
        this.name();
        const words = Object.keys(this.data.views);
        if (words.length > 1) tools.append(choice(words, (word) => { this.over = word; this.name(); this.change(); }));
        tools.append(...this.switches([this]));
        if (this.models().size > FEW) {
          for (const [word, all] of [["all", true], ["none", false]]) {
            tools.append(make("button", { type: "button", click: () => {
              this.hidden = new Set(all ? [] : this.models().keys());
              this.name();
              this.set("hidden", [...this.hidden]);
            } }, word));
          }
        }
        if (this.lines.series.some((line) => line.s)) {
          tools.append(toggle("seeds", true, (on) => { this.seeds = on; this.set("seeds", on); }));
        }
        tools.append(make("button", { type: "button", title: "Wheel and drag zoom and move; this shows all again",
          click: () => this.draw() }, "reset"));
      }
      const kinds = ["PNG", "SVG", "CSV", "JSON"].map((kind) =>
        make("button", { type: "button", click: () => this.save(kind) }, kind));
      const saving = make("details", {}, make("summary", {}, this.little ? "⋯" : "save"), make("span", {}, ...kinds));
      tools.append(saving);
      this.box.append(tools);
    }

    /* Logarithmic axes, where all numbers of some figure have logarithms. */
    switches(figures) {
      return ["X", "Y"].filter((axis) => figures.some((one) => one.lines.logs[axis.toLowerCase()])).map((axis) => {
        const name = axis.toLowerCase(), log = this.lines.spec.encoding[name].scale.type === "log";
        return toggle(`log ${name}`, log, (on) => figures.forEach((one) => { one[`log${axis}`] = on; one.change(); }));
      });
    }

    /* The models of the legend, each with its thickest line. */
    models() {
      const models = new Map();
      for (const line of this.lines.series) {
        if (line.m && (!models.has(line.m) || line.t)) models.set(line.m, line);
      }
      return models;
    }

    name() {
      const entries = [...this.models()].map(([model, { c, d, t }]) => {
        const dash = page.dashes[d].join(" ");
        const key = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        key.setAttribute("width", "26");
        key.setAttribute("height", "8");
        const stroke = document.createElementNS("http://www.w3.org/2000/svg", "path");
        for (const [name, value] of Object.entries({ d: "M0 4H26", stroke: `var(--s${c})`, "stroke-width": t ? 2.5 : 1,
          "stroke-dasharray": dash })) stroke.setAttribute(name, value);
        key.append(stroke);
        const entry = toggle("", !this.hidden.has(model), (on) => {
          this.hidden[on ? "delete" : "add"](model);
          this.set("hidden", [...this.hidden]);
        });
        entry.title = "hide or show";
        entry.append(key, make("span", {}, model));
        return entry;
      });
      this.legend.replaceChildren(...(entries.length > 1 ? entries : []));
    }

    /* The figure or its data as a file. */
    async save(kind) {
      if (!this.view) this.draw();
      if (kind === "JSON") {
        const spec = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", ...this.specification() };
        return this.give(plain(JSON.stringify(spec, null, 1)), "application/json", "json");
      }
      if (kind === "CSV") return this.give(this.table(), "text/csv", "csv");
      const svg = plain(await this.view.toSVG()).replace(/(<svg[^>]*>)/, `$1<rect width="100%" height="100%" fill="${
        colour("paper")}"/>`);
      if (kind === "SVG") return this.give(svg, "image/svg+xml", "svg");
      const picture = new Image();
      picture.src = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
      await picture.decode();
      const canvas = make("canvas", { width: 2 * picture.width, height: 2 * picture.height });
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      URL.revokeObjectURL(picture.src);
      canvas.toBlob((blob) => this.give(blob, "image/png", "png"));
    }

    table() {
      const rows = this.data.views
        ? this.lines.series.flatMap((line) => line.x.map((x, i) => {
          const edge = line.band ? line.band.x.indexOf(x) : -1;
          return { model: line.m, seed: line.s, point: line.n?.[i] ?? "", [this.lines.x]: x, [this.lines.y]: line.y[i],
            "as measured": line.o?.[i] ?? "", low: edge < 0 ? "" : line.band.lo[edge],
            high: edge < 0 ? "" : line.band.hi[edge] };
        }))
        : this.data.wide.spec.hconcat.flatMap((panel) => panel.data.values.map((row) => (
          { panel: panel.title?.text ?? "", name: row.name, value: row.text, interval: row.interval ?? "" })));
      const cell = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
      const names = Object.keys(rows[0] ?? {});
      return [names, ...rows.map((row) => Object.values(row))].map((row) => row.map(cell).join(",")).join("\n") + "\n";
    }

    give(content, type, ending) {
      const link = make("a", { href: URL.createObjectURL(new Blob([content], { type })), download:
        `${document.title.replace(/[^\w.-]+/g, "-").slice(0, 60)}-${Number(this.box.dataset.figure) + 1}.${ending}` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const plain = (text) => text.replace(/var\(--([\w-]+)\)/g, (_, name) => colour(name));

  const figures = new Map([...document.querySelectorAll(".chart")].map((box) => [box, new Figure(box)]));
  for (const grid of document.querySelectorAll(".small")) {
    const many = [...grid.querySelectorAll(".chart")].map((box) => figures.get(box));
    const words = Object.keys(many[0]?.data.views ?? {});
    const tools = make("div", { class: "tools" });
    if (words.length > 1) tools.append(choice(words, (word) => many.forEach((one) => { one.over = word; one.change(); })));
    if (many.length) tools.append(...many[0].switches(many));
    grid.before(tools);
  }
  /* Figures are drawn as they come near to what is seen, and again where their room changes. */
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      const one = figures.get(target);
      if (isIntersecting && !one.view) one.draw();
    }
  }, { rootMargin: "400px" });
  const room = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const one = figures.get(target.parentElement);
      // Not at once: what is drawn may change the height, and the browser reports that as a loop.
      if (one.view && Math.abs(one.plot.clientWidth - one.width) > 1) requestAnimationFrame(() => one.draw());
    }
  });
  for (const [box, one] of figures) {
    near.observe(box);
    room.observe(one.plot);
  }
  addEventListener("beforeprint", () => figures.forEach((one) => one.view || one.draw()));
})();
