// The curve of a scale over the run, to be dragged: it writes the text field of points beside it, and follows it.
//
// Drag a point. Double-click (or tap twice): adds one, or removes the one that is there. By keyboard: Tab to a
// point, arrows move it (with Shift by 0.01), Enter adds one after it, Delete removes it.
"use strict";
window.ckCurve = function (root) {
  const box = root.querySelector(".ck-curve");
  if (!box || box.dataset.ready) return;
  box.dataset.ready = "yes";
  const key = box.dataset.key;
  const W = 360, H = 150, L = 34, R = 12, T = 10, B = 26;
  const field = (name, kind) => document.querySelector(`#${key}-${name} ${kind}`);
  const text = () => field("points", "textarea") || field("points", "input");
  const number = (name, other) => {
    const found = parseFloat(field(name, "input[type=number]")?.value);
    return Number.isFinite(found) ? found : other;
  };
  const make = (kind, parent, values) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(values || {})) made.setAttribute(name, value);
    return parent.appendChild(made);
  };
  const svg = make("svg", box, { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": "Scale over the run" });
  const grid = make("g", svg, { class: "ck-axis" });
  const outside = [0, 1].map(() => make("rect", svg, { class: "ck-outside", y: T, height: H - T - B }));
  const line = make("polyline", svg, { class: "ck-line" });
  const spots = make("g", svg);
  const row = document.createElement("div");
  row.className = "ck-curve-row";
  const button = (word, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = word;
    made.addEventListener("click", act);
    return row.appendChild(made);
  };
  button("Add a point", () => { const { points } = read(); insert(points, widest(points)); });
  button("No curve", () => write([]));
  const said = document.createElement("span");
  row.appendChild(said);
  box.appendChild(row);

  let range = [0, 2], held = null, tap = null, drawn = "";
  const X = at => L + at * (W - L - R);
  const Y = value => T + (range[1] - value) / (range[1] - range[0]) * (H - T - B);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const round = (value, step) => Math.round(Math.round(value / step) * step * 1000) / 1000;

  // The points that are set; where there are none, the scale as two points that are not written yet.
  function read() {
    const given = (text()?.value || "").trim();
    const scale = number("scale", 1);
    if (!given) return { points: [[0, scale], [1, scale]], flat: true, bad: false };
    const points = given.split(/[,/]/).filter(part => part.trim()).map(part => part.split(":").map(Number));
    const good = points.every(point => point.length === 2 && point.every(Number.isFinite));
    const rising = good && points.every(([at], k) => at >= 0 && at <= 1 && (k === 0 || at >= points[k - 1][0]));
    return { points: rising ? points : [[0, scale], [1, scale]], flat: false, bad: !rising };
  }
  function write(points) {
    const area = text();
    if (!area) return;
    const value = points.map(([at, scale]) => `${at}:${scale}`).join(", ");
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(area), "value").set.call(area, value);
    area.dispatchEvent(new Event("input", { bubbles: true }));
    draw();
  }
  const at = (points, x) => {
    if (x <= points[0][0]) return points[0][1];
    for (let k = 1; k < points.length; k++) {
      const [[a, u], [b, v]] = [points[k - 1], points[k]];
      if (x <= b) return u + (v - u) * (x - a) / (b - a);
    }
    return points[points.length - 1][1];
  };
  const widest = points => {
    const stops = [0, ...points.map(([x]) => x), 1];
    let best = 0;
    for (let k = 1; k < stops.length; k++) if (stops[k] - stops[k - 1] > stops[best + 1] - stops[best]) best = k - 1;
    return round((stops[best] + stops[best + 1]) / 2, 0.01);
  };
  function insert(points, x, value) {
    if (points.some(([other]) => Math.abs(other - x) < 0.01)) return;
    const added = [x, value ?? round(at(points, x), 0.01)];
    const all = [...points, added].sort((a, b) => a[0] - b[0]);
    write(all);
    spots.children[all.indexOf(added)]?.focus();
  }
  function remove(points, index) {
    write(points.length > 1 ? points.filter((_, k) => k !== index) : []);
    spots.children[Math.max(0, index - 1)]?.focus();
  }
  function move(points, index, x, value) {
    const low = index ? points[index - 1][0] + 0.01 : 0;
    const high = index < points.length - 1 ? points[index + 1][0] - 0.01 : 1;
    const moved = points.map(point => [...point]);
    moved[index] = [round(clamp(x, low, high), 0.001), value];
    write(moved);
  }

  function draw() {
    const { points, flat, bad } = read();
    const start = number("start", 0), end = number("end", 1);
    const values = points.map(([, scale]) => scale);
    if (!held) range = [Math.min(0, Math.floor(Math.min(...values))), Math.max(2, Math.ceil(Math.max(...values)))];
    const state = JSON.stringify([points, flat, bad, start, end, range]);
    if (state === drawn) return;
    drawn = state;
    grid.textContent = "";
    const step = Math.max(1, Math.ceil((range[1] - range[0]) / 4));
    for (let value = range[0]; value <= range[1]; value += step) {
      make("line", grid, { x1: L, x2: W - R, y1: Y(value), y2: Y(value) });
      make("text", grid, { x: L - 6, y: Y(value) + 4, "text-anchor": "end" }).textContent = value;
    }
    [[0, "first step", "start"], [0.5, "half", "middle"], [1, "last step", "end"]].forEach(([x, word, anchor]) => {
      make("line", grid, { x1: X(x), x2: X(x), y1: T, y2: H - B });
      make("text", grid, { x: X(x), y: H - 8, "text-anchor": anchor }).textContent = word;
    });
    outside[0].setAttribute("x", X(0));
    outside[0].setAttribute("width", X(start) - X(0));
    outside[1].setAttribute("x", X(end));
    outside[1].setAttribute("width", Math.max(0, X(1) - X(end)));
    const path = [[0, at(points, 0)], ...points, [1, at(points, 1)]];
    line.setAttribute("points", path.map(([x, value]) => `${X(x)},${Y(value)}`).join(" "));
    while (spots.children.length > points.length) spots.lastChild.remove();
    while (spots.children.length < points.length) {
      const spot = make("g", spots, { class: "ck-spot", role: "slider", tabindex: 0 });
      make("circle", spot, { r: 18, class: "ck-reach" });
      make("circle", spot, { r: 6, class: "ck-dot" });
    }
    points.forEach(([x, value], k) => {
      const spot = spots.children[k];
      spot.setAttribute("transform", `translate(${X(x)} ${Y(value)})`);
      spot.setAttribute("aria-label", `Point ${k + 1} of ${points.length}`);
      spot.setAttribute("aria-valuemin", range[0]);
      spot.setAttribute("aria-valuemax", range[1]);
      spot.setAttribute("aria-valuenow", value);
      spot.setAttribute("aria-valuetext", `scale ${value} at ${Math.round(x * 100)} % of the run`);
    });
    svg.classList.toggle("ck-flat", flat || bad);
    said.textContent = bad ? "The points below cannot be read: fractions from 0 to 1 that grow." :
      flat ? "The same scale at every step." : "";
  }

  const place = event => {
    const matrix = svg.getScreenCTM().inverse();
    const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    return [clamp((spot.x - L) / (W - L - R), 0, 1), range[1] - (spot.y - T) / (H - T - B) * (range[1] - range[0])];
  };
  const held_at = target => [...spots.children].indexOf(target.closest?.(".ck-spot"));
  svg.addEventListener("pointerdown", event => {
    const index = held_at(event.target);
    held = { index, moved: false, x: event.clientX, y: event.clientY };
    if (index >= 0) {
      svg.setPointerCapture(event.pointerId);
      spots.children[index].focus();
      event.preventDefault();
    }
  });
  svg.addEventListener("pointermove", event => {
    if (!held || held.index < 0) return;
    if (!held.moved && Math.hypot(event.clientX - held.x, event.clientY - held.y) < 4) return;
    held.moved = true;
    const [x, value] = place(event);
    move(read().points, held.index, round(x, 0.05), round(clamp(value, range[0], range[1]), 0.05));
  });
  svg.addEventListener("pointerup", event => {
    if (!held) return;
    const { index, moved } = held;
    held = null;
    if (moved) { tap = null; draw(); return; }
    const again = tap && event.timeStamp - tap.time < 400 && Math.hypot(event.clientX - tap.x, event.clientY - tap.y) < 24;
    tap = again ? null : { time: event.timeStamp, x: event.clientX, y: event.clientY };
    if (!again) return;
    const { points } = read();
    if (index >= 0) remove(points, index);
    else {
      const [x, value] = place(event);
      insert(points, round(x, 0.01), round(clamp(value, range[0], range[1]), 0.05));
    }
  });
  svg.addEventListener("touchstart", event => {  // a finger on a point moves the point, not the page
    if (held_at(event.target) >= 0) event.preventDefault();
  }, { passive: false });
  svg.addEventListener("pointercancel", () => { held = null; });
  svg.addEventListener("keydown", event => {
    const index = held_at(event.target);
    if (index < 0) return;
    const { points } = read(), step = event.shiftKey ? 0.01 : 0.05, [x, value] = points[index];
    const next = points[index + 1]?.[0] ?? 1;
    const act = {
      ArrowLeft: () => move(points, index, round(x - step, step), value),
      ArrowRight: () => move(points, index, round(x + step, step), value),
      ArrowUp: () => move(points, index, x, round(value + step, step)),
      ArrowDown: () => move(points, index, x, round(value - step, step)),
      Delete: () => remove(points, index),
      Backspace: () => remove(points, index),
      Enter: () => insert(points, round(next > x ? (x + next) / 2 : x / 2, 0.01)),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  draw();
  const timer = setInterval(() => {
    if (!box.isConnected) clearInterval(timer);
    else if (!held && box.offsetParent) draw();
  }, 200);
};
