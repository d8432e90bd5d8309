// The table of attempts: sorted by any column, rows kept while they do not change.

import { card, el } from "./dom.js";
import { count, digits, duration, parameter } from "./format.js";

const MOST_ROWS = 200; // until somebody asks for all

export function attemptTable(actions) {
  const rows = new Map(); // by attempt: its row, and what the row shows
  let model = null;
  let sort = { key: "number", down: false };
  let columns = [];
  const head = el("tr");
  const body = el("tbody");
  const table = el("table", { class: "attempts" }, el("thead", {}, head), body);
  let isWhole = false;
  const note = el("span", { class: "note" });
  const all = el("button", { type: "button", hidden: true, click: () => ((isWhole = true), render()) });
  const render = () => {
    const shown = model.list.filter((each) => !model.shown || model.shown.has(each.number)).sort(order(columns, sort));
    note.textContent = shown.length === model.list.length ? "Select up to four to compare" : `${shown.length} of ${model.list.length}`;
    all.hidden = isWhole || shown.length <= MOST_ROWS;
    all.textContent = `Show all ${shown.length}`;
    const wanted = shown.slice(0, all.hidden ? shown.length : MOST_ROWS).map((each) => keep(rows, each, columns, model, actions));
    if (wanted.length !== body.children.length || wanted.some((row, i) => body.children[i] !== row)) body.replaceChildren(...wanted);
  };
  return {
    element: card("Attempts", [note], el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of attempts" }, table), all),
    update(next) {
      model = next;
      const found = columnsOf(next);
      if (found.map((each) => each.key).join("\n") !== columns.map((each) => each.key).join("\n")) {
        columns = found;
        rows.clear();
        heading(head, columns, sort, (key) => {
          sort = { key, down: sort.key === key ? !sort.down : Boolean(columns.find((each) => each.key === key).isValue && model.study.goal === "maximize") };
          mark(head, sort);
          render();
        });
      } else columns = found;
      render();
    },
    mark(isOn, isAny, selection) {
      rows.forEach(({ row, box }, each) => {
        row.classList.toggle("on", isOn(each));
        row.setAttribute("aria-selected", String(selection.includes(each)));
        box.checked = selection.includes(each);
      });
    },
  };
}

function columnsOf({ study, list }) {
  const names = [...new Set([...study.space.map((each) => each.name), ...list.flatMap((each) => Object.keys(each.params))])];
  const optional = (key, has, column) => (list.some(has) ? [{ key, ...column }] : []);
  return [
    { key: "number", title: "Attempt", of: (each) => each.number, text: (each) => String(each.number) },
    { key: "state", title: "State", of: (each) => each.state, text: (each) => each.state },
    { key: "value", title: study.metric, of: (each) => each.value, text: (each) => digits(each.value), isValue: true, isNumber: true },
    ...(study.final_metric ? [{ key: "final", title: study.final_metric, of: (each) => each.final_value, text: (each) => digits(each.final_value), isValue: true, isNumber: true }] : []),
    ...names.map((name) => ({ key: `param ${name}`, title: name, of: (each) => each.params[name], text: (each) => parameter(each.params[name]), isNumber: list.some((each) => typeof each.params[name] === "number") })),
    { key: "seed", title: "seed", of: (each) => each.seed, text: (each) => String(each.seed), isNumber: true },
    { key: "step", title: "steps", of: (each) => each.steps.at(-1), text: (each) => count(each.steps.at(-1)), isNumber: true },
    ...optional("gpu", (each) => each.gpu_seconds, { title: "GPU-s", of: (each) => each.gpu_seconds, text: (each) => count(each.gpu_seconds), isNumber: true }),
    ...optional("tokens", (each) => each.tokens, { title: "tokens", of: (each) => each.tokens, text: (each) => count(each.tokens), isNumber: true }),
    { key: "time", title: "time", of: took, text: (each) => duration(took(each)), isNumber: true },
  ];
}

function took(attempt) {
  return attempt.ended_at === null || attempt.ended_at < attempt.started_at ? null : attempt.ended_at - attempt.started_at;
}

// Numbers before text, and what is missing last in both directions.
function order(columns, { key, down }) {
  const column = columns.find((each) => each.key === key) ?? columns[0];
  return (a, b) => {
    const [x, y] = [column.of(a), column.of(b)];
    const missing = (x === null || x === undefined) - (y === null || y === undefined);
    if (missing) return missing;
    const found = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return (down ? -found : found) || a.number - b.number;
  };
}

function heading(head, columns, sort, choose) {
  const cells = columns.map((column) => {
    const button = el("button", { type: "button", click: () => choose(column.key) }, column.title);
    const cell = el("th", { scope: "col", class: column.isNumber ? "num" : "" }, button);
    cell.dataset.key = column.key;
    return cell;
  });
  head.replaceChildren(el("th", { scope: "col" }, el("span", { class: "hidden" }, "Compare")), ...cells);
  mark(head, sort);
}

function mark(head, { key, down }) {
  for (const cell of head.children) {
    if (cell.dataset.key === key) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
}

function keep(rows, attempt, columns, model, actions) {
  const texts = columns.map((column) => column.text(attempt));
  const good = attempt.value === null ? null : Math.round(model.good(attempt.value) * 100);
  const shows = JSON.stringify([texts, good, attempt.is_promotion, attempt.reason]);
  const known = rows.get(attempt.number);
  if (known?.shows === shows) return known.row;
  const box = known?.box ?? el("input", { type: "checkbox", "aria-label": `Compare attempt ${attempt.number}`, click: (event) => (event.stopPropagation(), actions.toggle(attempt.number)) });
  const row = known?.row ?? el("tr", {
    click: () => getSelection().toString() || actions.select(attempt.number),
    pointerenter: () => actions.hover(attempt.number),
    pointerleave: () => actions.hover(null),
  });
  row.replaceChildren(el("td", {}, box), ...columns.map((column, i) => cellOf(column, texts[i], attempt, good, actions)));
  rows.set(attempt.number, { row, box, shows });
  return row;
}

function cellOf(column, text, attempt, good, actions) {
  if (column.key === "number") {
    const open = (event) => (event.stopPropagation(), actions.select(attempt.number));
    return el("td", {}, el("button", { type: "button", class: "link", "aria-label": `Open attempt ${text}`, click: open }, text));
  }
  if (column.key === "state") {
    const promoted = attempt.is_promotion ? el("span", { class: "note", title: "A further seed of one of the best" }, " again") : null;
    return el("td", { title: attempt.reason || null }, el("span", { class: `state ${attempt.state}` }, text), promoted);
  }
  const cell = el("td", { class: column.isNumber ? "num" : "text", title: text.length > 24 ? text : null }, text);
  if (column.key === "value" && good !== null) {
    const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.setProperty("--t", `${good}%`);
    cell.prepend(swatch);
  }
  return cell;
}
