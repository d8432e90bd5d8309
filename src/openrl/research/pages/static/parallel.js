// Parallel coordinates: one line an attempt through its parameters to its value; dragging along an axis filters.

import { card, el, hideTip, markShapes, responsive, showTip, svg } from "./dom.js";
import { attemptLines, number } from "./format.js";
import { linear, parameterAxis, robustDomain, ticks } from "./scales.js";
import { nothing } from "./best.js";

const PARALLEL_HEIGHT = 320;
const PARALLEL_MARGIN = { top: 36, bottom: 18, side: 56 };
const AXIS_WIDTH = 110;
const SHORTEST_BRUSH = 0.02;

export function parallelChart(actions) {
  let model = null;
  const lines = new Map();
  const brushes = new Map(); // by axis: lowest and highest place, in 0..1
  const { box, redraw } = responsive("Parallel coordinates", (width) => model && drawParallel(model, width, lines, brushes, changed, actions), actions.mark);
  const clear = el("button", { type: "button", hidden: true, click: () => (brushes.clear(), changed()) }, "Show all");
  const note = el("span", { class: "note" });
  const changed = () => {
    const shown = within(model, brushes);
    clear.hidden = brushes.size === 0;
    note.textContent = brushes.size ? `${shown ? shown.size : 0} of ${model.list.length} attempts` : "Drag along an axis to filter";
    actions.filter(shown);
    redraw();
  };
  return {
    element: card("Parameters", [note, clear, legend()], el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Parallel coordinates" }, box)),
    update(next) {
      model = next;
      box.style.minWidth = `${(next.study.space.length + 1) * AXIS_WIDTH}px`;
      changed();
    },
    mark: (...how) => markShapes(lines, ...how),
  };
}

export function legend() {
  return el("span", { class: "legend", "aria-hidden": "true" }, "worse", el("span", { class: "ramp" }), "best");
}

function axesOf(model) {
  const axes = model.study.space.map((space) => {
    const axis = parameterAxis(space, model.list.map((each) => each.params[space.name]).filter((each) => each !== undefined));
    return { ...axis, of: (attempt) => (space.name in attempt.params ? axis.place(attempt.params[space.name]) : null) };
  });
  const domain = robustDomain(model.list.map((each) => each.value), model.study.goal);
  const place = linear(domain, [0, 1]);
  const of = (attempt) => (attempt.value === null ? null : Math.max(0, Math.min(1, place(attempt.value))));
  return [...axes, { name: model.study.metric, isMetric: true, of, labels: ticks(domain, 5).map((each) => [place(each), number(each)]) }];
}

// Numbers of the attempts that every brush holds; null without brushes.
function within(model, brushes) {
  if (!brushes.size) return null;
  const axes = axesOf(model).filter((axis) => brushes.has(axis.name));
  const holds = (attempt) => axes.every((axis) => {
    const [low, high] = brushes.get(axis.name);
    const place = axis.of(attempt);
    return place !== null && place >= low && place <= high;
  });
  return new Set(model.list.filter(holds).map((each) => each.number));
}

function drawParallel(model, width, lines, brushes, changed, actions) {
  const axes = axesOf(model);
  const { top, bottom, side } = PARALLEL_MARGIN;
  const x = linear([0, Math.max(1, axes.length - 1)], [side, width - side]);
  const y = linear([0, 1], [PARALLEL_HEIGHT - bottom, top]);
  const root = svg("svg", { width, height: PARALLEL_HEIGHT, role: "img", "aria-label": `${model.list.length} attempts over ${axes.map((axis) => axis.name).join(", ")}` });
  const shown = within(model, brushes);
  const group = svg("g");
  root.append(group);
  lines.clear();
  const rank = (each) => (each.value === null ? -1 : model.good(each.value));
  for (const attempt of [...model.list].sort((a, b) => rank(a) - rank(b))) {
    const places = axes.map((axis, i) => [i, axis.of(attempt)]).filter(([, place]) => place !== null);
    const d = places.map(([i, place], k) => `${k ? "L" : "M"}${x(i).toFixed(1)} ${y(place).toFixed(1)}`).join("");
    const state = attempt.value === null ? " valueless" : "";
    const line = svg("path", {
      class: `line${state}${shown && !shown.has(attempt.number) ? " out" : ""}`, d,
      pointerenter: (event) => (actions.hover(attempt.number), showTip(event, attemptLines(attempt, model.study))),
      pointerleave: () => (actions.hover(null), hideTip()),
      click: () => actions.select(attempt.number),
    });
    line.style.setProperty("--t", `${Math.round(Math.max(0, rank(attempt)) * 100)}%`);
    lines.set(attempt.number, line);
    group.append(line);
  }
  axes.forEach((axis, i) => root.append(drawAxis(axis, x(i), y, brushes, changed, i === axes.length - 1)));
  if (!model.list.length) root.append(nothing(width, PARALLEL_HEIGHT, "No attempt has begun yet"));
  return root;
}

function drawAxis(axis, x, y, brushes, changed, isLast) {
  const [above, below] = [y(1), y(0)];
  const parts = svg("g", { class: `axis${axis.isMetric ? " metric" : ""}` });
  parts.append(svg("text", { class: "axis-title", x, y: 18, "text-anchor": "middle" }, shorten(axis.name), svg("title", {}, axis.name)));
  parts.append(svg("line", { class: "axis-line", x1: x, x2: x, y1: above, y2: below }));
  for (const [place, text] of axis.labels) {
    parts.append(svg("line", { class: "axis-line", x1: x - 3, x2: x + 3, y1: y(place), y2: y(place) }));
    parts.append(svg("text", { class: "tick halo", x: isLast ? x + 9 : x - 9, y: y(place) + 4, "text-anchor": isLast ? "start" : "end" }, shorten(text)));
  }
  const brush = brushes.get(axis.name);
  const mark = svg("rect", { class: "brush", x: x - 9, width: 18, rx: 3, visibility: brush ? "visible" : "hidden" });
  const show = ([low, high]) => {
    mark.setAttribute("y", y(high));
    mark.setAttribute("height", y(low) - y(high));
    mark.setAttribute("visibility", "visible");
  };
  if (brush) show(brush);
  const handle = svg("rect", { class: "brush-handle", x: x - 14, y: above - 6, width: 28, height: below - above + 12 });
  handle.append(svg("title", {}, `Drag to filter by ${axis.name}`));
  handle.addEventListener("pointerdown", (down) => drag(handle, down, (event) => (y(0) - (event.clientY - handle.ownerSVGElement.getBoundingClientRect().top)) / (y(0) - y(1)), show, (range) => {
    if (range) brushes.set(axis.name, range);
    else brushes.delete(axis.name);
    changed();
  }));
  parts.append(mark, handle);
  return parts;
}

// From press to release: `done` gets the range, or null for a mere click.
function drag(handle, down, place, show, done) {
  down.preventDefault();
  handle.setPointerCapture(down.pointerId);
  const from = place(down);
  const range = (event) => [Math.min(from, place(event)), Math.max(from, place(event))];
  const move = (event) => show(range(event));
  const up = (event) => {
    handle.removeEventListener("pointermove", move);
    const [low, high] = range(event);
    done(high - low < SHORTEST_BRUSH ? null : [low - 0.005, high + 0.005]);
  };
  handle.addEventListener("pointermove", move);
  handle.addEventListener("pointerup", up, { once: true });
}

function shorten(text) {
  return text.length > 16 ? `${text.slice(0, 15)}…` : text;
}
