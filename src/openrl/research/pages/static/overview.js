// The head of a study: state, best so far, and what of the budget is used.

import { el } from "./dom.js";
import { count, number } from "./format.js";

export function overview() {
  const title = el("h1");
  const state = el("span", { class: "state" });
  const about = el("p", { class: "note about" });
  const tiles = el("dl", { class: "tiles" });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  return {
    element: el("div", { class: "overview" }, el("div", { class: "title" }, title, state), about, problem, tiles),
    update({ study, list }) {
      title.textContent = study.name;
      state.textContent = study.state;
      state.className = `state ${study.state}`;
      about.textContent = `${study.goal === "maximize" ? "Maximizes" : "Minimizes"} ${study.metric}, ${study.proposer} search over ${study.space.length} parameters, ${atOnce(study)}`;
      tiles.replaceChildren(...tilesOf(study, list));
    },
    fail(error) {
      problem.hidden = error === null;
      problem.textContent = error === null ? "" : `Cannot be read at the moment (${error.message}); trying again.`;
    },
  };
}

function atOnce({ parallel, max_parallel, packing }) {
  if (parallel !== "auto") return `${parallel} at once`;
  return packing ? `${packing.wanted} of up to ${max_parallel} at once: ${packing.why}` : `up to ${max_parallel} at once`;
}

function tilesOf(study, list) {
  const { used, budget, best } = study;
  const num = (state) => list.filter((each) => each.state === state).length;
  const states = ["running", "interrupted", "done", "stopped", "failed"].filter(num).map((state) => `${num(state)} ${state}`).join(", ");
  const bestText = best ? number(best.mean) : "–";
  const bestNote = best ? `attempt${best.attempts.length > 1 ? "s" : ""} ${best.attempts.join(", ")}${best.attempts.length > 1 ? ", mean" : ""}` : "no attempt is done";
  return [
    tile(`Best ${study.metric}`, bestText, bestNote, null, "tile best"),
    tile("Attempts", `${used.attempts}`, states || "none yet", [used.attempts, budget.attempts]),
    tile("GPU-seconds", count(used.gpu_seconds), budget.gpu_seconds === null ? "no bound" : null, [used.gpu_seconds, budget.gpu_seconds]),
    tile("Tokens", count(used.tokens), budget.tokens === null ? "no bound" : null, [used.tokens, budget.tokens]),
    ...(used.cost === null ? [] : [tile("Estimated cost", used.cost.toFixed(2), `at ${number(study.gpu_hour_price)} a GPU-hour`, null)]),
  ];
}

function tile(name, value, note, share, kind = "tile") {
  const parts = [el("dt", {}, name), el("dd", { class: "big" }, value)];
  if (share !== null && share[1] !== null) {
    parts[1].append(el("span", { class: "of" }, ` of ${count(share[1])}`));
    const percent = Math.min(100, (share[0] / share[1]) * 100);
    const meter = el("dd", { class: "meter", role: "meter", "aria-label": `${name} used`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(percent) }, el("span"));
    meter.firstChild.style.width = `${percent}%`;
    parts.push(meter);
  }
  if (note) parts.push(el("dd", { class: "note" }, note));
  return el("div", { class: kind }, ...parts);
}
