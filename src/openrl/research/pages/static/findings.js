// What the study found: the best against the defaults, and the importance of parameters.

import { card, el, responsive, svg } from "./dom.js";
import { number } from "./format.js";
import { linear, ticks } from "./scales.js";

const INTERVAL_HEIGHT = 76;

export function findingsPanel() {
  let found = null;
  const { box, redraw } = responsive("Difference to the defaults", (width) => found?.comparison && drawInterval(found.comparison, width));
  const verdict = el("p", { class: "verdict" });
  const versus = el("div", { hidden: true }, verdict, box);
  const bars = el("dl", { class: "bars" });
  const matters = el("div", { hidden: true }, el("h3", {}, "What mattered", el("span", { class: "note" }, " for being among the best (PED-ANOVA)")), bars);
  const none = el("p", { class: "note" }, "There is something to compare when the defaults and another choice have two seeds each, and to weigh when four attempts are done.");
  return {
    element: card("Findings", [], versus, matters, none),
    update({ findings }) {
      found = findings;
      const comparison = findings?.comparison ?? null;
      const importances = findings?.importances ?? [];
      versus.hidden = comparison === null;
      matters.hidden = importances.length === 0;
      none.hidden = !versus.hidden || !matters.hidden;
      if (comparison) {
        verdict.replaceChildren(...sentence(comparison));
        redraw();
      }
      bars.replaceChildren(...importances.flatMap(({ name, share }) => bar(name, share)));
    },
  };
}

function sentence(found) {
  const names = found.best.attempts.join(", ");
  return [
    el("span", { class: `badge ${found.holds ? "good" : "open"}` }, found.holds ? "Better beyond chance" : "Not shown to be better"),
    ` The best choice (attempts ${names}) against the defaults (attempts ${found.default.attempts.join(", ")}) on ${found.metric}, over seeds. ` +
      `p\u00a0=\u00a0${number(found.p_value, 2)}, counted for ${found.num_choices} choices.`,
  ];
}

function drawInterval(found, width) {
  const [low, high] = found.interval;
  const span = Math.max(high, 0) - Math.min(low, 0) || 1;
  const domain = [Math.min(low, 0) - span * 0.12, Math.max(high, 0) + span * 0.12];
  const x = linear(domain, [12, width - 12]);
  const label = `Difference ${number(found.difference)}, 95 % interval ${number(low)} to ${number(high)}`;
  const root = svg("svg", { width, height: INTERVAL_HEIGHT, role: "img", "aria-label": label });
  for (const value of ticks(domain, 5)) {
    root.append(svg("line", { class: value === 0 ? "zero" : "grid", x1: x(value), x2: x(value), y1: 22, y2: 52 }));
    root.append(svg("text", { class: "tick", x: x(value), y: 68, "text-anchor": "middle" }, `${value > 0 ? "+" : ""}${number(value)}`));
  }
  root.append(svg("line", { class: "whisker", x1: x(low), x2: x(high), y1: 37, y2: 37 }));
  root.append(svg("circle", { class: "estimate", cx: x(found.difference), cy: 37, r: 6 }));
  const anchor = x(found.difference) > width * 0.6 ? "end" : "start";
  root.append(svg("text", { class: "value-label", x: x(anchor === "end" ? high : low), y: 14, "text-anchor": anchor }, `${found.difference > 0 ? "+" : ""}${number(found.difference)} (95 %: ${number(low)} to ${number(high)})`));
  return root;
}

function bar(name, share) {
  const fill = el("span", { class: "fill" });
  fill.style.width = `${Math.round((share ?? 0) * 100)}%`;
  return [el("dt", {}, name), el("dd", {}, el("span", { class: "track" }, fill), el("span", { class: "num" }, `${Math.round((share ?? 0) * 100)} %`))];
}
