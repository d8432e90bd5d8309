// The chart of the best value so far, over attempts or GPU-seconds.

import { card, choices, hideTip, markShapes, responsive, showTip, svg } from "./dom.js";
import { attemptLines, count, number } from "./format.js";
import { linear, robustDomain, ticks } from "./scales.js";

const BEST_HEIGHT = 320;
const BEST_MARGIN = { top: 10, right: 12, bottom: 38, left: 56 };

export function bestChart(actions) {
  let model = null;
  let over = "attempts";
  const dots = new Map();
  const { box, redraw } = responsive("Best value so far", (width) => model && drawBest(model, over, width, dots, actions), actions.mark);
  const control = choices("Over", [["attempts", "Attempts"], ["gpu", "GPU-seconds"]], over, (key) => {
    over = key;
    redraw();
  });
  return {
    element: card("Best so far", [control], box),
    update(next) {
      model = next;
      control.hidden = !next.study.used.gpu_seconds;
      redraw();
    },
    mark: (...how) => markShapes(dots, ...how),
  };
}

// Attempts in the order of their ends, each with the cost until then and the best until then.
function progress(model) {
  const better = model.study.goal === "maximize" ? (a, b) => a > b : (a, b) => a < b;
  const ended = model.list.filter((each) => each.ended_at !== null && each.state !== "running");
  ended.sort((a, b) => a.ended_at - b.ended_at || a.number - b.number);
  let [gpu, best] = [0, null];
  return ended.map((attempt, i) => {
    gpu += attempt.gpu_seconds ?? 0;
    if (attempt.state === "done" && attempt.value !== null && (best === null || better(attempt.value, best))) best = attempt.value;
    return { attempt, attempts: i + 1, gpu, best };
  });
}

function drawBest(model, over, width, dots, actions) {
  const points = progress(model);
  const { top, right, bottom, left } = BEST_MARGIN;
  const yDomain = robustDomain(points.map((each) => each.attempt.value), model.study.goal);
  const x = linear([0, Math.max(1, ...points.map((each) => each[over]))], [left, width - right]);
  const y = linear(yDomain, [BEST_HEIGHT - bottom, top]);
  const clamp = (value) => Math.max(top, Math.min(BEST_HEIGHT - bottom, y(value)));
  const root = svg("svg", { width, height: BEST_HEIGHT, role: "img", "aria-label": summaryOfBest(model, points) });
  root.append(...frame(x, y, yDomain, width, BEST_HEIGHT, BEST_MARGIN, [0, Math.max(1, ...points.map((each) => each[over]))]));
  root.append(svg("text", { class: "axis-name", x: width - right, y: BEST_HEIGHT - 4, "text-anchor": "end" }, over === "gpu" ? "GPU-seconds" : "attempts that ended"));
  const reference = defaultValue(model);
  if (reference !== null) {
    root.append(svg("line", { class: "reference", x1: left, x2: width - right, y1: clamp(reference), y2: clamp(reference) }));
  }
  const steps = points.filter((each) => each.best !== null);
  if (steps.length) {
    const path = steps.map((each, i) => (i ? `H${x(each[over])}V${clamp(each.best)}` : `M${x(each[over])} ${clamp(each.best)}`)).join("");
    root.append(svg("path", { class: "best-line", d: `${path}H${width - right}` }));
  }
  const group = svg("g");
  root.append(group);
  dots.clear();
  for (const each of points.filter((point) => point.attempt.value !== null)) {
    const dot = svg("circle", {
      class: `dot ${each.attempt.state}`, cx: x(each[over]), cy: clamp(each.attempt.value), r: 4,
      pointerenter: (event) => (actions.hover(each.attempt.number), showTip(event, attemptLines(each.attempt, model.study))),
      pointerleave: () => (actions.hover(null), hideTip()),
      click: () => actions.select(each.attempt.number),
    });
    dot.style.setProperty("--t", `${Math.round(model.good(each.attempt.value) * 100)}%`);
    dots.set(each.attempt.number, dot);
    group.append(dot);
  }
  if (reference !== null) {
    root.append(svg("text", { class: "axis-name halo", x: left + 6, y: clamp(reference) + 16 }, `defaults ${number(reference)}`));
  }
  if (!points.length) root.append(nothing(width, BEST_HEIGHT, "No attempt has ended yet"));
  return root;
}

function defaultValue(model) {
  const { defaults } = model.study;
  if (defaults === null) return null;
  const same = (params) => Object.keys(defaults).every((name) => params[name] === defaults[name]);
  const values = model.list.filter((each) => each.state === "done" && each.value !== null && same(each.params)).map((each) => each.value);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

function summaryOfBest(model, points) {
  const last = points.at(-1);
  return last ? `${model.study.metric} of ${points.length} attempts; the best is ${number(last.best)}` : "no attempt has ended";
}

// Grid lines with their numbers: y on the left, x below.
export function frame(x, y, yDomain, width, height, margin, xDomain) {
  const parts = [];
  for (const value of ticks(yDomain, 5)) {
    parts.push(svg("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }));
    parts.push(svg("text", { class: "tick", x: margin.left - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const value of ticks(xDomain, width < 500 ? 4 : 8)) {
    parts.push(svg("text", { class: "tick", x: x(value), y: height - margin.bottom + 18, "text-anchor": "middle" }, count(value)));
  }
  return parts;
}

export function nothing(width, height, text) {
  return svg("text", { class: "nothing", x: width / 2, y: height / 2, "text-anchor": "middle" }, text);
}
