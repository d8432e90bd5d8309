// The page of one study: its views, and what is hovered, selected and filtered in all of them.

import { attemptTable } from "./table.js";
import { bestChart } from "./best.js";
import { curvesChart } from "./curves.js";
import { detailDrawer } from "./detail.js";
import { el } from "./dom.js";
import { findingsPanel } from "./findings.js";
import { goodness } from "./scales.js";
import { overview } from "./overview.js";
import { parallelChart } from "./parallel.js";

const MOST_SELECTED = 4;

// Returns how to take the page away. `selected` are the attempts to begin with; `onSelect` hears of others.
export function showStudy(root, source, selected, onSelect) {
  const model = { study: null, attempts: new Map(), list: [], findings: null, selection: selected, shown: null, good: null };
  let hovered = null;
  let marked = [];
  const mark = () => {
    const isOn = (each) => each === hovered || model.selection.includes(each);
    const isAny = hovered !== null || model.selection.length > 0;
    for (const view of marked) view.mark(isOn, isAny, model.selection);
  };
  const choose = (selection) => {
    model.selection = selection.slice(-MOST_SELECTED);
    onSelect(model.selection);
    drawer.update(model);
    mark();
  };
  const actions = {
    mark,
    hover: (each) => ((hovered = each), mark()),
    select: (each) => {
      choose(model.selection.length === 1 && model.selection[0] === each ? [] : [each]);
      if (model.selection.length) drawer.focus();
    },
    toggle: (each) => choose(model.selection.includes(each) ? model.selection.filter((other) => other !== each) : [...model.selection, each]),
    clear: () => choose([]),
    filter: (shown) => {
      const before = model.shown;
      model.shown = shown;
      if (before === null && shown === null) return;
      curves.update(model);
      table.update(model);
      mark();
    },
  };
  const [head, best, findings] = [overview(), bestChart(actions), findingsPanel()];
  const [parallel, curves, table] = [parallelChart(actions), curvesChart(actions), attemptTable(actions)];
  const drawer = detailDrawer(actions, source);
  marked = [best, parallel, curves, table];
  const views = [head, best, curves, table, parallel, drawer];
  const text = source.markdown === null ? null : el("details", { class: "card markdown" }, el("summary", {}, "Report as text"), el("pre", { tabindex: 0 }, source.markdown));
  root.replaceChildren(el("main", {}, head.element, el("div", { class: "pair" }, best.element, findings.element), parallel.element, curves.element, table.element, text), drawer.element);
  const onKey = (event) => event.key === "Escape" && actions.clear();
  document.addEventListener("keydown", onKey);
  const changed = (news) => {
    head.fail(null);
    if (news === null) return;
    Object.assign(model, news);
    if (news.findings) findings.update(model);
    if (!news.study) return;
    model.list = [...news.attempts.values()].sort((a, b) => a.number - b.number);
    model.good = goodness(model.list, news.study.goal);
    document.title = `${news.study.name} – ${news.study.state}`;
    for (const view of views) view.update(model);
    mark();
  };
  const stop = source.follow(changed, (error) => head.fail(error));
  return () => {
    stop();
    document.removeEventListener("keydown", onKey);
    document.body.classList.remove("with-drawer");
  };
}
