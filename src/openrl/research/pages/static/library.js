// The index of studies.

import { ask, poll } from "./source.js";
import { count, number } from "./format.js";
import { el } from "./dom.js";

// Returns how to take the page away; `only(id)` is called where there is a single study.
export function showLibrary(root, address, only) {
  const list = el("ul", { class: "studies" });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  root.replaceChildren(el("main", {}, el("div", { class: "overview" }, el("div", { class: "title" }, el("h1", {}, "Studies")), problem), list));
  document.title = "Studies";
  let shown = "";
  const step = async () => {
    const { content } = await ask("api/v1/studies");
    problem.hidden = true;
    if (content.studies.length === 1 && only) return only(content.studies[0].id);
    const text = JSON.stringify(content);
    if (text !== shown) list.replaceChildren(...(content.studies.length ? content.studies.map((each) => entry(each, address)) : [el("li", { class: "card note" }, "There is no study here yet: `openrl research new` makes one.")]));
    shown = text;
  };
  return poll(step, (error) => {
    problem.hidden = false;
    problem.textContent = `Cannot be read at the moment (${error.message}); trying again.`;
  });
}

function entry(study, address) {
  if (study.error !== null) return el("li", { class: "card" }, el("h2", {}, study.id), el("p", { class: "problem" }, study.error));
  const { used, budget, best } = study;
  const facts = [`${used.attempts} of ${budget.attempts} attempts`, used.gpu_seconds ? `${count(used.gpu_seconds)} GPU-seconds` : null, used.tokens ? `${count(used.tokens)} tokens` : null];
  return el("li", {}, el("a", { class: "card study", href: address(study.id) },
    el("span", { class: "title" }, el("h2", {}, study.id), el("span", { class: `state ${study.state}` }, study.state)),
    el("span", { class: "big" }, best ? number(best.mean) : "–", el("span", { class: "of" }, ` ${study.metric}`)),
    el("span", { class: "note" }, facts.filter(Boolean).join(" · "))));
}
