// View of a single picture. The stage's viewBox is the visible part of the picture.

const viewer = byId("viewer");
const stage = byId("stage");
let current = null;
let view = null;
let hits = null;

function open(index) {
  current = pictures[index];
  stage.replaceChildren();
  const [height, width] = current.grid;
  stage.append(make("image", { href: current.image.src, width, height, preserveAspectRatio: "none" }));
  addLayers(stage, current);
  stage.append(make("path", { class: "hover" }));
  drawOutlines(stage, current);
  hits = null;
  byId("tip").hidden = true;
  byId("viewer-name").textContent = current.name;
  stage.setAttribute("aria-label", current.name);
  byId("viewer-place").textContent = `${index + 1} / ${pictures.length}`;
  byId("viewer-truth").hidden = !current.truth;
  describeCurrent();
  if (!viewer.open) viewer.showModal();
  fit();
}

function describeCurrent() {
  const counts = countByClass(current);
  const facts = [`${current.size[1]} × ${current.size[0]} pixels`, plural(sum(counts), "cell", "cells")];
  if (current.score) {
    const { value, missed, wrong } = current.score;
    if (value !== null) facts.push(`score ${value.toFixed(2)}: ${missed} missed, ${wrong} wrong`);
  }
  byId("viewer-facts").textContent = facts.join(" · ");
}

function step(by) {
  open((pictures.indexOf(current) + by + pictures.length) % pictures.length);
}

function show() {
  stage.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
  const scale = stage.getScreenCTM()?.a ?? 1;
  const perPixel = (scale * current.grid[1]) / (current.image.naturalWidth || current.grid[1]);
  stage.classList.toggle("pixels", perPixel > 5);
}

function fit() {
  view = { x: 0, y: 0, width: current.grid[1], height: current.grid[0] };
  show();
}

function toGrid(x, y) {
  return new DOMPoint(x, y).matrixTransform(stage.getScreenCTM().inverse());
}

function middle() {
  const box = stage.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}

function zoom(factor, x, y) {
  const [height, width] = current.grid;
  const limited = Math.min(Math.max(factor, view.width / width), (view.width / width) * 60);
  const point = toGrid(x, y);
  view.x = point.x - (point.x - view.x) / limited;
  view.y = point.y - (point.y - view.y) / limited;
  view.width /= limited;
  view.height /= limited;
  keepInSight(width, height);
  show();
}

function pan(dx, dy) {
  const scale = stage.getScreenCTM().a;
  view.x -= dx / scale;
  view.y -= dy / scale;
  keepInSight(current.grid[1], current.grid[0]);
  show();
}

function keepInSight(width, height) {
  view.x = Math.min(Math.max(view.x, -view.width / 2), width - view.width / 2);
  view.y = Math.min(Math.max(view.y, -view.height / 2), height - view.height / 2);
}

const pointers = new Map();
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  stage.classList.add("dragging");
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return point(event);
  const now = [event.clientX, event.clientY];
  pointers.set(event.pointerId, now);
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  if (!other) return pan(now[0] - before[0], now[1] - before[1]);
  const distance = (a) => Math.max(1, Math.hypot(a[0] - other[0], a[1] - other[1]));
  pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  zoom(distance(now) / distance(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
});
for (const name of ["pointerup", "pointercancel"]) {
  stage.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    stage.classList.toggle("dragging", pointers.size > 0);
  });
}
stage.addEventListener("pointerleave", () => point(null));
stage.addEventListener("dblclick", (event) => zoom(2, event.clientX, event.clientY));
stage.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0016)), event.clientX, event.clientY);
  },
  { passive: false },
);

// The smallest visible cell under the pointer
const ruler = document.createElement("canvas").getContext("2d");
function point(event) {
  const tip = byId("tip");
  const hover = stage.querySelector(".hover");
  const found = event && shown.outlines ? cellAt(toGrid(event.clientX, event.clientY)) : -1;
  tip.hidden = found < 0;
  hover?.setAttribute("d", found < 0 ? "" : current.cells.paths[found]);
  if (found < 0) return;
  const k = current.cells.classes[found];
  hover.setAttribute("class", `hover k${k}`);
  const score = (current.cells.scores[found] / report.scoreUnits).toFixed(2);
  const area = plural(current.cells.areas[found], "pixel", "pixels");
  tip.textContent = `${classes[k - 1].name} · score ${score} · ${area}`;
  const box = stage.getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 6)}px`;
  tip.style.top = `${Math.max(4, event.clientY - box.top - 34)}px`;
}

function cellAt({ x, y }) {
  const { scores, areas, paths, classes: of } = current.cells;
  hits ??= paths.map((path) => new Path2D(path));
  let found = -1;
  hits.forEach((path, i) => {
    if (scores[i] < shown.scoreThreshold || shown.hidden.has(of[i]) || (found >= 0 && areas[found] <= areas[i])) return;
    if (ruler.isPointInPath(path, x, y)) found = i;
  });
  return found;
}

viewer.addEventListener("close", () => {
  point(null);
  current.card.querySelector(".open").focus();
});
byId("close").addEventListener("click", () => viewer.close());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("zoom-in").addEventListener("click", () => zoom(1.5, ...middle()));
byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5, ...middle()));
byId("zoom-fit").addEventListener("click", fit);
window.addEventListener("resize", () => viewer.open && show());
