// The page: its data, outlines, gallery, switches and keys. charts.js and viewer.js follow in the same function scope.
// The data: #report-data (classes, scores), and next to each thumbnail the picture's cells as parallel arrays.

const byId = (id) => document.getElementById(id);
const read = (element) => JSON.parse(element.textContent);
const report = read(byId("report-data"));
const classes = report.classes;
const shown = { scoreThreshold: report.scoreThreshold, outlines: true, truth: true, hidden: new Set() };

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const rough = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const plural = (count, one, many) => `${whole.format(count)} ${count === 1 ? one : many}`;
const share = (value) => (value === null ? "–" : value.toFixed(3));

function make(tag, attributes = {}, ...children) {
  const inSvg = ["svg", "g", "path", "image"].includes(tag);
  const element = inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const dot = (k) => make("span", { class: `dot k${k}`, "aria-hidden": "true" });
const label = (k, text) => make("span", { class: "label" }, dot(k), text);

const pictures = [...document.querySelectorAll(".card")].map((card) => {
  const picture = read(card.querySelector("script"));
  return Object.assign(picture, { card, image: card.querySelector("img"), near: false });
});

// Colours are part of the data, so their CSS rules are made here.
const colors = make("style");
colors.textContent = classes.map((c, i) => `.k${i + 1}{--c:${c.color}}`).join("");
const hiding = make("style");
document.head.append(colors, hiding);

// ---- Outlines: one path per class of all its cells with a sufficient score, over a dark edge

function addLayers(svg, picture) {
  svg.setAttribute("viewBox", `0 0 ${picture.grid[1]} ${picture.grid[0]}`);
  for (const kind of ["truth-edge", "truth-cell", "edge", "cell"]) {
    if (kind.startsWith("truth") && !picture.truth) continue;
    classes.forEach((_, i) => svg.append(make("path", { class: `${kind} outline k${i + 1}` })));
  }
}

function drawOutlines(svg, picture) {
  const join = (cells, keep) => {
    const parts = classes.map(() => []);
    cells.classes.forEach((k, i) => keep(i) && parts[k - 1].push(cells.paths[i]));
    return parts.map((paths) => paths.join(""));
  };
  const draw = (kind, paths) => {
    paths.forEach((path, i) => svg.querySelector(`.${kind}.k${i + 1}`).setAttribute("d", path));
  };
  const cells = join(picture.cells, (i) => picture.cells.scores[i] >= shown.scoreThreshold);
  draw("cell", cells);
  draw("edge", cells);
  if (!picture.truth) return;
  const truth = join(picture.truth, () => true);
  draw("truth-cell", truth);
  draw("truth-edge", truth);
}

function countByClass(picture) {
  const counts = classes.map(() => 0);
  picture.cells.classes.forEach((k, i) => (counts[k - 1] += picture.cells.scores[i] >= shown.scoreThreshold));
  return counts;
}
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

// ---- Gallery

function describe(picture) {
  const counts = countByClass(picture);
  const facts = counts.map((count, i) => count && label(i + 1, whole.format(count))).filter(Boolean);
  const total = make("span", { class: "total" }, plural(sum(counts), "cell", "cells"));
  picture.facts.replaceChildren(total, ...(classes.length > 1 ? facts : []));
}

function prepareCard(picture) {
  const svg = make("svg", { "aria-hidden": "true" });
  addLayers(svg, picture);
  picture.svg = svg;
  picture.card.querySelector(".open").append(svg);
  picture.card.querySelector(".open").addEventListener("click", () => open(pictures.indexOf(picture)));
  picture.facts = make("span", { class: "facts" });
  const caption = picture.card.querySelector("figcaption");
  if (picture.score) {
    const { value, found, missed, wrong } = picture.score;
    const text = value === null ? "no cells, none found" : value.toFixed(2);
    const bar = make("div", { style: `width:${100 * (value ?? 0)}%` });
    const title = `TP / (TP + FP + FN) at IoU 0.5: ${found} found, ${missed} missed, ${wrong} wrong`;
    const meter = value === null ? [] : [make("span", { class: "meter" }, bar)];
    const errors = make("span", {}, `${missed} missed, ${wrong} wrong`);
    caption.append(make("span", { class: "score", title }, make("b", {}, text), ...meter, errors));
  }
  caption.append(picture.facts);
}

function order(by) {
  const value = (picture) => picture.score?.value ?? Infinity;
  const cells = new Map(pictures.map((picture) => [picture, sum(countByClass(picture))]));
  const comparisons = {
    worst: (a, b) => (value(a) === value(b) ? a.index - b.index : value(a) - value(b)),
    given: (a, b) => a.index - b.index,
    most: (a, b) => cells.get(b) - cells.get(a) || a.index - b.index,
    fewest: (a, b) => cells.get(a) - cells.get(b) || a.index - b.index,
  };
  pictures.sort(comparisons[by]);
  byId("gallery").append(...pictures.map((picture) => picture.card));
}

// Outlines of pictures are drawn when they are near the visible area.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const picture = pictures.find((one) => one.card === entry.target);
      picture.near = entry.isIntersecting;
      if (picture.near && picture.drawnAt !== shown.scoreThreshold) drawCard(picture);
    }
  },
  { rootMargin: "600px" },
);

function drawCard(picture) {
  drawOutlines(picture.svg, picture);
  picture.drawnAt = shown.scoreThreshold;
}

// ---- Switches, slider and keys

function toggle(what) {
  shown[what] = !shown[what];
  document.body.classList.toggle(`no-${what}`, !shown[what]);
  for (const id of [`toggle-${what}`, `viewer-${what}`]) byId(id).setAttribute("aria-pressed", shown[what]);
  if (viewer.open) point(null);
}

function toggleClass(k) {
  if (!shown.hidden.delete(k)) shown.hidden.add(k);
  hiding.textContent = [...shown.hidden].map((hidden) => `.outline.k${hidden}{display:none}`).join("");
  byId("toggle-classes").children[k - 1].setAttribute("aria-pressed", !shown.hidden.has(k));
}

for (const what of ["outlines", "truth"]) {
  for (const id of [`toggle-${what}`, `viewer-${what}`]) byId(id).addEventListener("click", () => toggle(what));
}
classes.forEach((c, i) => {
  const key = i < 9 && classes.length > 1 ? [make("kbd", {}, String(i + 1))] : [];
  const attributes = { type: "button", class: "switch class", "aria-pressed": "true" };
  const button = make("button", attributes, label(i + 1, c.name), ...key);
  button.addEventListener("click", () => toggleClass(i + 1));
  byId("toggle-classes").append(button);
});

const slider = byId("score-threshold");
slider.value = report.scoreThreshold / report.scoreUnits;
function say() {
  const value = shown.scoreThreshold / report.scoreUnits;
  byId("score-threshold-shown").textContent = Number(value.toFixed(2)) === value ? value.toFixed(2) : String(value);
}
let waiting = false;
slider.addEventListener("input", () => {
  shown.scoreThreshold = Math.round(slider.value * report.scoreUnits);
  say();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    update();
  });
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
  const keys = { o: () => toggle("outlines"), t: () => report.scores && toggle("truth") };
  if (viewer.open) {
    Object.assign(keys, {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      "+": () => zoom(1.5, ...middle()),
      "=": () => zoom(1.5, ...middle()),
      "-": () => zoom(1 / 1.5, ...middle()),
      0: fit,
    });
  }
  const number = Number(event.key);
  if (number >= 1 && number <= classes.length) keys[event.key] = () => toggleClass(number);
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

function update() {
  summarize();
  for (const picture of pictures) {
    describe(picture);
    if (picture.near) drawCard(picture);
  }
}

// ---- Start, when all scripts are loaded

function start() {
  const orders = { worst: "worst first", given: "as given", most: "most cells first", fewest: "fewest cells first" };
  if (!report.scores) delete orders.worst;
  byId("order").append(...Object.entries(orders).map(([value, text]) => make("option", { value }, text)));
  byId("order").addEventListener("change", (event) => order(event.target.value));
  byId("order-label").hidden = pictures.length < 2;
  byId("no-pictures").hidden = pictures.length > 0;
  byId("charts").hidden = pictures.every((picture) => picture.cells.areas.length === 0);
  byId("toggle-truth").hidden = !report.scores;
  byId("subtitle").hidden = !byId("subtitle").textContent;
  pictures.forEach(prepareCard);
  say();
  update();
  pictures.forEach((picture) => watcher.observe(picture.card));
}
