// Numbers of the page: key figures, the table of classes and the histograms.

function median(numbers) {
  if (numbers.length === 0) return null;
  const sorted = Float64Array.from(numbers).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function summarize() {
  const areas = classes.map(() => []);
  for (const { cells } of pictures) {
    cells.classes.forEach((k, i) => cells.scores[i] >= shown.scoreThreshold && areas[k - 1].push(cells.areas[i]));
  }
  const all = areas.flat();
  drawFigures(all);
  drawTable(areas, all);
  drawHistogram(byId("sizes"), sizeAxis, areas, () => false);
  drawHistogram(byId("scores"), scoreAxis, scoresByClass, (stop) => stop <= shown.scoreThreshold);
}

function drawFigures(areas) {
  const pixels = median(areas);
  const figures = [
    ["Cells", whole.format(areas.length), `in ${plural(pictures.length, "picture", "pictures")}`, "cells"],
    ["Median size", pixels === null ? "–" : whole.format(pixels), "pixels", "median"],
  ];
  const scores = report.scores;
  if (scores) {
    figures.push(
      ["AP", share(scores.ap), "COCO, IoU 0.50 to 0.95", "ap"],
      ["AP50", share(scores.ap50), "COCO, IoU 0.50", "ap50"],
      [
        "TP / (TP + FP + FN)",
        share(scores.value),
        ["found", "missed", "wrong"].map((what) => `${whole.format(scores[what])} ${what}`).join(", "),
        "dense",
      ],
    );
  }
  byId("figures").replaceChildren(
    ...figures.map(([name, value, note, key]) => {
      const number = make("dd", { id: `figure-${key}` }, make("span", {}, value), make("small", {}, note));
      return make("div", {}, make("dt", {}, name), number);
    }),
  );
}

function drawTable(areas, all) {
  const scores = report.scores;
  const most = Math.max(1, ...areas.map((of) => of.length));
  const titles = ["Class", "Cells", "", "Per picture", "Median size"];
  if (scores) titles.push("Found", "Missed", "Wrong", "TP/(TP+FP+FN)", "AP", "AP50");
  const middle = (of) => (of.length ? whole.format(median(of)) : "–");
  const numbers = (of) => [rough.format(of.length / Math.max(1, pictures.length)), middle(of)];
  const against = (s) => [...[s.found, s.missed, s.wrong].map(whole.format), ...[s.value, s.ap, s.ap50].map(share)];
  const cells = (values) => values.map((value) => make("td", {}, value));
  const table = byId("counts");
  const heading = (title) => make("th", title ? { scope: "col" } : { class: "share" }, title);
  table.tHead.replaceChildren(make("tr", {}, ...titles.map(heading)));
  table.tBodies[0].replaceChildren(
    ...classes.map((c, i) => {
      const bar = make("div", { class: `k${i + 1}`, style: `width:${(100 * areas[i].length) / most}%` });
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, label(i + 1, c.name)),
        make("td", { class: "count" }, whole.format(areas[i].length)),
        make("td", { class: "share", "aria-hidden": "true" }, ...(areas[i].length ? [bar] : [])),
        ...cells(numbers(areas[i])),
        ...(scores ? cells(against(scores.classes[i])) : []),
      );
    }),
  );
  const total = make("tr", {}, make("th", { scope: "row" }, "All"));
  total.append(make("td", { class: "count" }, whole.format(all.length)), make("td", { class: "share" }));
  total.append(...cells([...numbers(all), ...(scores ? against(scores) : [])]));
  table.tFoot.replaceChildren(total);
  table.tFoot.hidden = classes.length < 2;
  if (scores) {
    byId("score-note").hidden = false;
    const lowest = [...new Set(classes.map((c) => c.scoreThreshold))];
    const each = lowest.length > 1 ? classes.map((c) => `${c.scoreThreshold} (${c.name})`) : lowest;
    byId("score-note").textContent =
      `Against the true cells of ${plural(scores.pictures, "picture", "pictures")}, as maskrcnn evaluate scores them. ` +
      `A cell is found if one of its class has an IoU of at least 0.5 with it; found, missed and wrong cells are ` +
      `counted at a score of at least ${each.join(", ")} and do not follow the slider. AP and AP50 are COCO's, at up ` +
      `to ${scores.limit} cells per picture.` +
      (classes.length > 1 ? " The scores of all classes together are the means of the classes." : "");
  }
}

// ---- Histograms. An axis: {bins, place: value -> 0..1, stop: bin -> value, ticks: [[0..1, text]], text: bin -> text}

function logAxis(values) {
  let low = Infinity;
  let high = 1;
  for (const value of values) {
    if (value > 0) low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const from = Math.floor(Math.log10(Math.min(low, high)) * 4) / 4;
  const to = Math.max(Math.ceil(Math.log10(high + 1) * 4) / 4, from + 0.5);
  const bins = Math.max(24, Math.round((to - from) * 20));
  const value = (place) => 10 ** (from + place * (to - from));
  const place = (number) => (Math.log10(Math.max(number, 1)) - from) / (to - from);
  const ticks = [];
  for (let decade = Math.floor(from); decade <= to; decade++) {
    for (const step of to - from > 2.5 ? [1] : [1, 2, 5]) {
      const at = place(step * 10 ** decade);
      if (at >= 0 && at <= 1 && decade >= 0) ticks.push([at, whole.format(step * 10 ** decade)]);
    }
  }
  const text = (bin) => `${rough.format(value(bin / bins))} to ${rough.format(value((bin + 1) / bins))} pixels`;
  return { bins, place, stop: (bin) => value((bin + 1) / bins), ticks, text };
}
const scoreAxis = {
  bins: 50,
  place: (score) => score / report.scoreUnits,
  stop: (bin) => ((bin + 1) * report.scoreUnits) / 50,
  ticks: [0, 0.2, 0.4, 0.6, 0.8, 1].map((score) => [score, String(score)]),
  text: (bin) => `${(bin / 50).toFixed(2)} to ${((bin + 1) / 50).toFixed(2)}`,
};
const sizeAxis = logAxis(pictures.flatMap((picture) => picture.cells.areas));
const scoresByClass = classes.map((_, i) =>
  pictures.flatMap(({ cells }) => cells.scores.filter((_, j) => cells.classes[j] === i + 1)),
);

function drawHistogram(element, axis, values, pale) {
  const rows = classes.map((c, i) => {
    const counts = new Array(axis.bins).fill(0);
    for (const value of values[i]) {
      counts[Math.min(axis.bins - 1, Math.max(0, Math.floor(axis.place(value) * axis.bins + 1e-9)))]++;
    }
    const most = Math.max(...counts);
    const bars = counts.map((count, bin) => {
      const height = count ? Math.max(2, (100 * count) / most) : 0;
      const title = count ? { title: `${axis.text(bin)}: ${plural(count, "cell", "cells")}` } : {};
      return make("i", { class: pale(axis.stop(bin)) ? "pale" : "", style: `height:${height}%`, ...title });
    });
    const note = most ? `at most ${plural(most, "cell", "cells")} per bar` : "no cells";
    return make(
      "div",
      { class: `row k${i + 1}` },
      make("div", { class: "caption" }, label(i + 1, c.name), make("span", {}, note)),
      make("div", { class: "bars", role: "img", "aria-label": `${c.name}: ${note}` }, ...bars),
    );
  });
  const side = (at) => (at < 0.02 ? "first" : at > 0.98 ? "last" : "");
  const ticks = axis.ticks.map(([at, text]) => make("span", { class: side(at), style: `left:${100 * at}%` }, text));
  element.replaceChildren(...rows, make("div", { class: "axis", "aria-hidden": "true" }, ...ticks));
}
