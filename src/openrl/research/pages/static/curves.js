// Every attempt's reports by step, one over another.

import { card, el, hideTip, markShapes, responsive, showTip, svg } from "./dom.js";
import { attemptLines, number } from "./format.js";
import { linear, robustDomain } from "./scales.js";
import { frame, nothing } from "./best.js";
import { legend } from "./parallel.js";

const CURVES_HEIGHT = 300;
const CURVES_MARGIN = { top: 10, right: 12, bottom: 38, left: 56 };
const NEAR_PX = 24;
const MOST_POINTS = 30000; // of all lines together; more are not told apart

export function curvesChart(actions) {
  let model = null;
  let name = null;
  let smoothing = 0;
  const lines = new Map();
  const { box, redraw } = responsive("Curves", (width) => model && drawCurves(model, name, smoothing, width, lines, actions), actions.mark);
  const metric = el("select", { "aria-label": "Metric of the curves", change: () => ((name = metric.value), redraw()) });
  const smooth = el("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: 0, "aria-label": "Smoothing", input: () => ((smoothing = Number(smooth.value)), redraw()) });
  return {
    element: card("Curves", [metric, el("label", { class: "note" }, "Smoothing ", smooth), legend()], box),
    update(next) {
      model = next;
      const names = [...new Set([next.study.metric, ...next.list.flatMap((each) => Object.keys(each.curves))])];
      if (metric.options.length !== names.length) metric.replaceChildren(...names.map((each) => el("option", { value: each }, each)));
      name = names.includes(name) ? name : names[0];
      metric.value = name;
      redraw();
    },
    mark: (...how) => markShapes(lines, ...how),
  };
}

// Exponential moving average, without the pull of its beginning.
function smoothed(values, weight) {
  let [sum, total] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value * (1 - weight);
    total = total * weight + (1 - weight);
    return sum / total;
  });
}

function drawCurves(model, name, smoothing, width, lines, actions) {
  const { top, right, bottom, left } = CURVES_MARGIN;
  const curves = model.list.filter((each) => each.curves[name]).map((attempt) => ({ attempt, steps: attempt.steps, values: smoothed(attempt.curves[name], smoothing) }));
  const isMetric = name === model.study.metric;
  const yDomain = robustDomain(curves.flatMap((each) => each.values), isMetric ? model.study.goal : "maximize");
  const xDomain = [0, curves.reduce((most, each) => Math.max(most, each.steps.at(-1) ?? 1), 1)];
  const x = linear(xDomain, [left, width - right]);
  const y = linear(yDomain, [CURVES_HEIGHT - bottom, top]);
  const root = svg("svg", { width, height: CURVES_HEIGHT, role: "img", "aria-label": `${name} by step of ${curves.length} attempts` });
  root.append(...frame(x, y, yDomain, width, CURVES_HEIGHT, CURVES_MARGIN, xDomain));
  root.append(svg("text", { class: "axis-name", x: width - right, y: CURVES_HEIGHT - 4, "text-anchor": "end" }, "step"));
  const id = "curves-clip";
  root.append(svg("clipPath", { id }, svg("rect", { x: left, y: 0, width: Math.max(0, width - left - right), height: CURVES_HEIGHT - bottom + 2 })));
  const group = svg("g", { "clip-path": `url(#${id})` });
  const rank = (attempt) => (attempt.value === null ? 0 : model.good(attempt.value));
  curves.sort((a, b) => rank(a.attempt) - rank(b.attempt));
  const every = Math.ceil(curves.reduce((sum, each) => sum + each.steps.length, 0) / MOST_POINTS);
  lines.clear();
  for (const each of curves) {
    const isOut = model.shown && !model.shown.has(each.attempt.number);
    each.points = each.values.flatMap((value, i) => (value === null ? [] : [[x(each.steps[i]), y(value), i]]));
    const drawn = each.points.filter((_, i) => i % every === 0 || i === each.points.length - 1);
    const d = drawn.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    const line = svg("path", { class: `line${isOut ? " out" : ""}`, d: drawn.length === 1 ? `${d}h2` : d });
    line.style.setProperty("--t", `${Math.round(rank(each.attempt) * 100)}%`);
    lines.set(each.attempt.number, line);
    group.append(line);
  }
  root.append(group);
  if (!curves.length) root.append(nothing(width, CURVES_HEIGHT, `No attempt has reported ${name} yet`));
  else follow(root, curves.filter((each) => !model.shown || model.shown.has(each.attempt.number)), model, name, actions);
  return root;
}

// The curve nearest to the pointer is the one that is meant.
function follow(root, curves, model, name, actions) {
  let near = null;
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    near = nearest(curves, event.clientX - box.left, event.clientY - box.top);
    actions.hover(near && near.curve.attempt.number);
    if (!near) return hideTip();
    const { attempt, steps, values } = near.curve;
    showTip(event, [...attemptLines(attempt, model.study), `step ${number(steps[near.index])}: ${name} ${number(values[near.index])}`]);
  });
  root.addEventListener("pointerleave", () => ((near = null), actions.hover(null), hideTip()));
  root.addEventListener("click", () => near && actions.select(near.curve.attempt.number));
}

function nearest(curves, x, y) {
  let [found, distance] = [null, NEAR_PX];
  for (const curve of curves) {
    const points = curve.points;
    let [low, high] = [0, points.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle + 1;
      else high = middle;
    }
    for (const index of [low - 1, low]) {
      if (index < 0 || index >= points.length) continue;
      const far = Math.hypot(points[index][0] - x, points[index][1] - y);
      if (far < distance) [found, distance] = [{ curve, index: points[index][2] }, far];
    }
  }
  return found;
}
