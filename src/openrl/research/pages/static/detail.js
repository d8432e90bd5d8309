// The drawer of what is selected: parameters side by side, log, patch.

import { breakable, el, pickColour } from "./dom.js";
import { count, duration, number, parameter } from "./format.js";

const MOST_PATCH_LINES = 5000;

export function detailDrawer(actions, source) {
  const content = el("div", { class: "drawer-content" });
  const title = el("h2", { tabindex: -1 });
  const close = el("button", { type: "button", click: () => actions.clear() }, "Close");
  const element = el("aside", { class: "drawer", hidden: true, "aria-label": "Selected attempts" }, el("header", {}, title, close), content);
  const files = new Map(); // by attempt: the element of its log and patch
  let shown = "";
  const refresh = async (each) => {
    try {
      fillFiles(files.get(each.number), await source.files(each.number));
    } catch (error) {
      files.get(each.number)?.replaceChildren(el("p", { class: "note" }, `Log cannot be read: ${error.message}`));
    }
  };
  return {
    element,
    update(model) {
      const chosen = model.selection.map((each) => model.attempts.get(each)).filter(Boolean);
      element.hidden = chosen.length === 0;
      document.body.classList.toggle("with-drawer", chosen.length > 0);
      const key = JSON.stringify(chosen.map((each) => [each.number, each.state, each.steps.length, each.gpu_seconds]));
      if (key === shown) return;
      shown = key;
      for (const number of [...files.keys()]) if (!model.selection.includes(number)) files.delete(number);
      title.textContent = chosen.length === 1 ? `Attempt ${chosen[0].number}` : `Attempts ${chosen.map((each) => each.number).join(", ")}`;
      for (const each of chosen) if (!files.has(each.number)) files.set(each.number, el("div", { class: "files" }, el("p", { class: "note" }, "Reading the log…")));
      content.replaceChildren(...chosen.map(summary), comparison(chosen, model.study), ...chosen.map((each) => section(each, files.get(each.number))));
      chosen.forEach(refresh);
    },
    focus: () => title.focus(),
  };
}

function summary(attempt, place) {
  const facts = [
    `seed ${attempt.seed}`,
    attempt.steps.length ? `${count(attempt.steps.at(-1))} steps` : "no report",
    attempt.gpu_seconds ? `${count(attempt.gpu_seconds)} GPU-seconds` : null,
    attempt.tokens ? `${count(attempt.tokens)} tokens` : null,
    attempt.ended_at ? duration(attempt.ended_at - attempt.started_at) : null,
  ].filter(Boolean);
  return el("p", { class: "summary" },
    picked("strong", `${attempt.number} `, place), el("span", { class: `state ${attempt.state}` }, attempt.state), ` ${facts.join(" · ")}`,
    attempt.reason ? el("span", { class: "reason" }, attempt.reason) : null);
}

// One attempt beside the defaults, or several beside each other; what differs comes first.
function comparison(chosen, study) {
  const withDefaults = study.defaults !== null;
  const names = [...new Set([...study.space.map((each) => each.name), ...chosen.flatMap((each) => Object.keys(each.params))])];
  const rows = names.map((name) => {
    const values = chosen.map((each) => each.params[name]);
    const compared = chosen.length > 1 || !withDefaults ? values : [study.defaults[name], ...values];
    return { name, values, differs: compared.some((each) => each !== compared[0]) };
  }).sort((a, b) => b.differs - a.differs);
  const results = [[study.metric, (each) => each.value], ...(study.final_metric ? [[study.final_metric, (each) => each.final_value]] : [])];
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Parameters" }, el("table", { class: "params" },
    el("caption", {}, chosen.length > 1 ? "What differs between them comes first" : withDefaults ? "What differs from the defaults comes first" : "Parameters"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "parameter"), withDefaults ? el("th", { scope: "col" }, "default") : null, ...chosen.map((each, place) => picked("th", `attempt ${each.number}`, place)))),
    el("tbody", {},
      ...rows.map((row) => el("tr", { class: row.differs ? "differs" : "same" }, el("th", { scope: "row" }, breakable(row.name)), withDefaults ? el("td", {}, breakable(parameter(study.defaults[row.name]))) : null, ...row.values.map((value) => el("td", { class: row.differs && !(withDefaults && value === study.defaults[row.name]) ? "changed" : "" }, breakable(parameter(value)))))),
      ...results.map(([name, of]) => el("tr", { class: "result" }, el("th", { scope: "row" }, breakable(name)), withDefaults ? el("td") : null, ...chosen.map((each) => el("td", {}, number(of(each)))))))));
}

// In the colour that the attempt has in the charts.
function picked(tag, text, place) {
  const element = el(tag, { class: "picked", scope: tag === "th" ? "col" : null }, text);
  element.style.setProperty("--pick", pickColour(place));
  return element;
}

function section(attempt, files) {
  return el("section", { class: "attempt-files", "aria-label": `Files of attempt ${attempt.number}` }, files);
}

function fillFiles(element, { attempt, log, patch }) {
  if (!element) return;
  const before = element.querySelector(".log");
  const isAtEnd = !before || before.scrollTop + before.clientHeight >= before.scrollHeight - 4;
  const at = before?.scrollTop ?? 0;
  element.replaceChildren(
    ...(patch ? [el("h3", {}, `Change of attempt ${attempt}`, cutNote(patch, "first")), patchOf(patch.text)] : []),
    el("h3", {}, `Log of attempt ${attempt}`, log ? cutNote(log, "last") : null),
    log ? el("pre", { class: "log", tabindex: 0, "aria-label": `Log of attempt ${attempt}` }, log.text || "(empty)") : el("p", { class: "note" }, "There is no log"),
  );
  const after = element.querySelector(".log");
  if (after) after.scrollTop = isAtEnd ? after.scrollHeight : at;
}

function cutNote(excerpt, which) {
  return excerpt.is_cut ? el("span", { class: "note" }, ` the ${which} lines of ${count(excerpt.file_bytes)} bytes`) : null;
}

function patchOf(text) {
  const lines = text.split("\n");
  const kind = (line) => (/^(diff |index |--- |\+\+\+ )/.test(line) ? "file" : line.startsWith("@@") ? "hunk" : line.startsWith("+") ? "added" : line.startsWith("-") ? "removed" : "");
  return el("pre", { class: "patch", tabindex: 0, "aria-label": "Patch" }, ...lines.slice(0, MOST_PATCH_LINES).map((line) => el("span", { class: kind(line) }, `${line}\n`)));
}
