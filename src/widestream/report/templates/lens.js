// The pictures of a lens page: tokens to choose from, bars of who wrote, maps that can be zoomed. Data: #lens.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("lens").textContent);
  const tip = document.getElementById("tip");
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const element = (name, parent, text) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const shown = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
  const colour = (name) => {
    const probe = element("i", document.body);
    probe.style.color = `var(--${name})`;
    const found = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
    probe.remove();
    return found;
  };
  let ink = {};
  const readColours = () => { ink = { none: colour("panel"), up: colour("s0"), down: colour("s1"), zero: colour("paper"), text: colour("ink") }; };
  readColours();
  const blend = (a, b, t) => a.map((from, i) => Math.round(from + (b[i] - from) * t));
  const paint = (value) => {
    if (value === null) return ink.none;
    const size = Math.sqrt(Math.min(1, Math.abs(value)));
    return blend(ink.zero, value < 0 ? ink.down : ink.up, size);
  };

  const showTip = (event, lines) => {
    tip.replaceChildren();
    for (const [name, value] of lines) {
      const row = element("div", tip);
      element("span", row, name);
      element("b", row, value);
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18}px`;
  };
  const hideTip = () => { tip.hidden = true; };

  // A map of cells: value(row, column) in -1 to 1 or null; describe(row, column) the lines of its tip.
  class Heat {
    constructor(parent, title, note, level = "h2") {
      const figure = element("section", parent);
      element(level, figure, title);
      if (note) element("p", figure, note).className = "soft";
      this.tools = element("div", figure);
      this.tools.className = "tools";
      const reset = element("button", this.tools, "whole");
      reset.type = "button";
      reset.addEventListener("click", () => this.reset());
      const box = element("div", figure);
      box.className = "heat";
      this.canvas = element("canvas", box);
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-label", title);
      this.listen();
    }
    set(rows, columns, value, describe, groups) {
      this.names = groups;
      const same = this.rows === rows && this.columns === columns;
      Object.assign(this, { rows, columns, value, describe });
      if (!same) this.view = [0, 0, columns, rows];
      this.draw();
    }
    reset() { this.view = [0, 0, this.columns, this.rows]; this.draw(); }
    draw() {
      if (!this.rows || !this.columns) return;
      const width = Math.max(1, this.canvas.parentElement.clientWidth);
      const scale = Math.min(devicePixelRatio || 1, 2);
      const height = Math.max(60, Math.min(560, Math.max(width * this.view[3] / this.view[2], 14 * Math.min(this.view[3], 26))));
      this.canvas.style.height = `${height}px`;
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      const [x0, y0, w, h] = this.view;
      const context = this.canvas.getContext("2d");
      const picture = context.createImageData(this.canvas.width, this.canvas.height);
      const column = Array.from({ length: this.canvas.width }, (_, x) => Math.min(this.columns - 1, Math.floor(x0 + (x + 0.5) / this.canvas.width * w)));
      let before = -1, start = 0;
      for (let y = 0; y < this.canvas.height; y++) {
        const row = Math.min(this.rows - 1, Math.floor(y0 + (y + 0.5) / this.canvas.height * h));
        const at = y * this.canvas.width * 4;
        if (row === before) { picture.data.copyWithin(at, start, start + this.canvas.width * 4); continue; }
        let last = -1, now = [0, 0, 0];
        for (let x = 0; x < this.canvas.width; x++) {
          if (column[x] !== last) { last = column[x]; now = paint(this.value(row, last)); }
          picture.data.set([now[0], now[1], now[2], 255], at + 4 * x);
        }
        before = row; start = at;
      }
      context.putImageData(picture, 0, 0);
      this.label(context, height, scale);
    }
    // Names of groups of rows, where there is room for them.
    label(context, height, scale) {
      if (!this.names) return;
      const [, y0, , h] = this.view;
      let before = null, free = -20;
      context.font = `${11 * scale}px system-ui, sans-serif`;
      context.textBaseline = "top";
      for (let row = Math.floor(y0); row < Math.min(this.rows, y0 + h); row++) {
        const name = this.names(row), y = Math.max(0, (row - y0) / h * height);
        if (name === before) continue;
        before = name;
        if (y < free || y > height - 12) continue;
        free = y + 15;
        const wide = context.measureText(name).width;
        context.fillStyle = `rgba(${ink.zero.join()}, 0.78)`;
        context.fillRect(0, y * scale, wide + 8 * scale, 14 * scale);
        context.fillStyle = `rgb(${ink.text.join()})`;
        context.fillText(name, 4 * scale, (y + 1.5) * scale);
      }
    }
    cell(event) {
      const box = this.canvas.getBoundingClientRect(), [x0, y0, w, h] = this.view;
      const x = x0 + (event.clientX - box.left) / box.width * w, y = y0 + (event.clientY - box.top) / box.height * h;
      return [x, y, Math.max(0, Math.min(this.rows - 1, Math.floor(y))), Math.max(0, Math.min(this.columns - 1, Math.floor(x)))];
    }
    listen() {
      let from = null;
      this.canvas.addEventListener("pointermove", (event) => {
        if (from && event.buttons) {
          const box = this.canvas.getBoundingClientRect();
          this.move(from.view[0] - (event.clientX - from.x) / box.width * this.view[2], from.view[1] - (event.clientY - from.y) / box.height * this.view[3]);
          return;
        }
        const [, , row, column] = this.cell(event);
        showTip(event, this.describe(row, column));
      });
      this.canvas.addEventListener("pointerdown", (event) => {
        if (event.pointerType === "mouse") from = { x: event.clientX, y: event.clientY, view: [...this.view] };
        const [, , row, column] = this.cell(event);
        showTip(event, this.describe(row, column));
      });
      addEventListener("pointerup", () => { from = null; });
      this.canvas.addEventListener("pointerleave", hideTip);
      this.canvas.addEventListener("dblclick", () => this.reset());
      this.canvas.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey && !event.shiftKey && this.view[2] === this.columns && event.deltaY > 0) return;
        event.preventDefault();
        const [x, y] = this.cell(event), by = event.deltaY < 0 ? 0.8 : 1.25;
        const w = Math.max(4, Math.min(this.columns, this.view[2] * by)), h = Math.max(4, Math.min(this.rows, this.view[3] * by));
        const fx = (x - this.view[0]) / this.view[2], fy = (y - this.view[1]) / this.view[3];
        this.view[2] = Math.min(w, this.columns); this.view[3] = Math.min(h, this.rows);
        this.move(x - fx * this.view[2], y - fy * this.view[3]);
      }, { passive: false });
    }
    move(x, y) {
      this.view[0] = Math.max(0, Math.min(this.columns - this.view[2], x));
      this.view[1] = Math.max(0, Math.min(this.rows - this.view[3], y));
      this.draw();
    }
  }

  const maps = document.getElementById("maps"), all = [];
  const number = (value) => (value === null ? "none" : Math.abs(value) >= 0.01 || value === 0 ? value.toFixed(3) : value.toExponential(1));
  const NONE = -32768, TOP = 32767; // of a 16-bit cell
  let chosen = data.tokens.length - 1;

  // Who wrote: bars for the chosen token.
  const section = document.getElementById("chosen");
  const values = data.attribution ? new Float32Array(bytes(data.attribution.values).buffer) : null;
  const T = data.tokens.length;
  const bars = () => {
    const box = section.querySelector(".bars");
    box.replaceChildren();
    if (!values) return;
    document.getElementById("bars-name").textContent = `“${shown(data.targets[chosen])}” after “${shown(data.tokens[chosen])}”: logit ${data.attribution.logit[chosen].toFixed(2)}`;
    const rows = data.attribution.writers.map((name, i) => [name, values[i * T + chosen]]);
    rows.push(["constants", data.attribution.constants[chosen]]);
    rows.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    const most = rows.slice(0, 16), rest = rows.slice(16).reduce((sum, row) => sum + row[1], 0);
    if (rows.length > 16) most.push([`${rows.length - 16} others`, rest]);
    const top = Math.max(...most.map((row) => Math.abs(row[1])), 1e-9);
    for (const [name, value] of most) {
      element("span", box, name);
      const bar = element("i", element("div", box));
      bar.style.background = value < 0 ? "var(--s1)" : "var(--s0)";
      bar.style.width = `${Math.abs(value) / top * 50}%`;
      bar.style.left = value < 0 ? `${50 - Math.abs(value) / top * 50}%` : "50%";
      element("span", box, (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3));
    }
  };
  const chips = section.querySelector(".tokens");
  data.tokens.forEach((token, index) => {
    const chip = element("button", chips, shown(token) || " ");
    chip.type = "button";
    chip.setAttribute("role", "option");
    chip.addEventListener("click", () => { chosen = index; update(); });
  });
  section.hidden = false;

  const names = (label, list) => (index) => [label, list[index]];
  const unpacked = ({ top, bytes: text }) => ({ top, cells: new Int16Array(bytes(text).buffer) });
  // One matrix minus another of the same scale, in a scale of its own.
  const minus = (own, other) => {
    const apart = Array.from(own.cells, (cell, i) => (cell === NONE || other.cells[i] === NONE ? null : cell - other.cells[i]));
    const most = apart.reduce((top, value) => Math.max(top, Math.abs(value ?? 0)), 0) || 1;
    return { top: own.top * most / TOP, cells: Int16Array.from(apart, (value) => (value === null ? NONE : Math.round(value / most * TOP))) };
  };
  // Wires on a map: the cells of one table, and for the tip a value of each.
  const setWires = (heat, { readers, writers }, { cells }, tables) => {
    const at = (row, column) => row * writers.length + column;
    const told = ([name, table], row, column) => {
      const found = table.cells[at(row, column)];
      return [name, found === NONE ? "none" : number(found / TOP * table.top)];
    };
    heat.set(readers.length, writers.length, (row, column) => (cells[at(row, column)] === NONE ? null : cells[at(row, column)] / TOP), (row, column) => [
      names("writer", writers)(column), names("reader", readers)(row), ...tables.map((table) => told(table, row, column)),
    ], (row) => readers[row].split(".").slice(0, 2).join("."));
  };
  // Buttons of which one is pressed.
  const chooser = (parent, words, show) => {
    const choice = element("span", parent);
    choice.className = "choice";
    const press = (word) => {
      for (const button of choice.children) button.setAttribute("aria-pressed", String(button.textContent === word));
      show(word);
    };
    for (const word of words) {
      const button = element("button", choice, word);
      button.type = "button";
      button.addEventListener("click", () => press(word));
    }
    press(words[0]);
  };
  if (data.wiring) {
    const heat = new Heat(maps, "Who reads whom", "Readers from top to bottom, writers from left to right, both in order of depth. Drag to move, turn the wheel upwards to zoom, double-click for the whole.");
    all.push(heat);
    const tables = Object.entries(data.wiring.views).map(([name, view]) => [name, unpacked(view)]);
    chooser(heat.tools, Object.keys(data.wiring.views), (word) => setWires(heat, data.wiring, new Map(tables).get(word), tables));
  }

  if (data.against) {
    const section = element("section", maps), [own, other] = data.against.names;
    element("h2", section, `Beside ${other}`);
    element("p", section, `Both wirings in one scale, and ${own} minus ${other}.`).className = "soft";
    const tools = element("div", section), beside = element("div", section);
    tools.className = "tools";
    beside.className = "beside";
    const titles = [own, other, "difference"], heats = titles.map((name) => new Heat(beside, name, "", "h3"));
    all.push(...heats);
    const views = Object.fromEntries(Object.entries(data.against.views).map(([name, pair]) => {
      const both = pair.map(unpacked);
      return [name, [...both, minus(...both)]];
    }));
    chooser(tools, Object.keys(views), (word) => heats.forEach((heat, i) =>
      setWires(heat, data.against, views[word][i], titles.map((name, j) => [name, views[word][j]]))));
  }

  if (data.lanes) {
    const { names: lanes, dynamic } = data.lanes, { top, cells } = unpacked(data.lanes), size = lanes.length;
    const heat = new Heat(maps, "How lanes are mixed over depth", `What a lane in front of a reader (row) has of a lane in front of an earlier one (column): the product of all mixing matrices between them${dynamic ? ", mean over the prompt's tokens" : ""}.`);
    all.push(heat);
    const cell = (row, column) => (cells[row * size + column] === NONE ? null : cells[row * size + column] / TOP);
    heat.set(size, size, cell, (row, column) => [
      ["to", lanes[row]], ["from", lanes[column]], ["weight", cell(row, column) === null ? "none" : number(cell(row, column) * top)],
    ], (row) => lanes[row].split(",")[0]);
  }

  let attention = null, weights = null;
  if (data.attention) {
    weights = bytes(data.attention.bytes);
    attention = new Heat(maps, "Where heads look", data.attention.whole ? "A row a head, from the chosen token back." : "A row a head, from the last token back; of a prompt this long the page holds no more.");
    all.push(attention);
  }
  const drawAttention = () => {
    if (!attention) return;
    const whole = data.attention.whole, at = whole ? chosen : T - 1;
    const cell = (row, column) => weights[row * (whole ? T * T : T) + (whole ? at * T : 0) + column] / 255;
    attention.set(data.heads.length, T, (row, column) => (column > at ? null : cell(row, column)), (row, column) => [
      ["head", data.heads[row]], ["from", shown(data.tokens[at])], ["to", `${column}: ${shown(data.tokens[column])}`],
      ["weight", column > at ? "none" : cell(row, column).toFixed(3)],
    ], (row) => data.heads[row].split(".").slice(0, 2).join("."));
  };

  if (data.lens.readers.length) {
    const heat = new Heat(maps, "What the head would say, reader by reader", "Readers from top to bottom, tokens from left to right; colour: the probability of the token that comes next.");
    all.push(heat);
    heat.set(data.lens.readers.length, T, (row, column) => data.lens.target[row][column], (row, column) => [
      ["reader", data.lens.readers[row]], ["after", shown(data.tokens[column])], ["comes", `${shown(data.targets[column])} ${(100 * data.lens.target[row][column]).toFixed(1)}%`],
      ["likeliest", `${shown(data.lens.likeliest[row][column])} ${(100 * data.lens.probability[row][column]).toFixed(1)}%`],
    ], (row) => data.lens.readers[row]);
  }

  const update = () => {
    [...chips.children].forEach((chip, index) => chip.setAttribute("aria-selected", String(index === chosen)));
    bars();
    drawAttention();
  };
  update();
  let waiting = 0;
  addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => all.forEach((heat) => heat.draw())); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); all.forEach((heat) => heat.draw()); });
})();
