// Makes elements. What a study says becomes text nodes and attribute values only, never markup.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// A drawing that is made anew when its box changes; `draw(width)` returns the element, or null while there is nothing to draw.
// `drawn` is called after it.
export function responsive(label, draw, drawn = () => {}) {
  const box = el("div", { class: "chart" });
  let width = 0;
  const redraw = () => {
    const drawing = width > 0 ? draw(width) : null;
    if (!drawing) return;
    box.replaceChildren(drawing);
    drawn();
  };
  new ResizeObserver(([entry]) => {
    const found = Math.floor(entry.contentRect.width);
    if (found === width) return;
    width = found;
    redraw();
  }).observe(box);
  box.setAttribute("aria-label", label);
  box.setAttribute("role", "group");
  return { box, redraw };
}

export function card(title, controls, ...content) {
  return el("section", { class: "card", "aria-label": title }, el("header", {}, el("h2", {}, title), ...controls), ...content);
}

// Long names may break after an underscore.
export function breakable(text) {
  return text.split(/(?<=_)/).flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
}

// A row of buttons of which one is pressed.
export function choices(label, options, chosen, choose) {
  const group = el("div", { class: "choices", role: "group", "aria-label": label });
  const press = (key) => {
    for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.key === key));
  };
  for (const [key, text] of options) {
    const button = el("button", { type: "button", click: () => (press(key), choose(key)) }, text);
    button.dataset.key = key;
    group.append(button);
  }
  press(chosen);
  return group;
}

// Puts hovered and selected attempts before the others; each selected one has a colour of its own.
export function markShapes(shapes, isOn, isAny, selection) {
  shapes.forEach((shape, each) => {
    const on = isOn(each);
    if (on && !shape.classList.contains("on")) shape.parentNode.append(shape);
    shape.classList.toggle("on", on);
    shape.classList.toggle("faded", isAny && !on);
    if (on) shape.style.setProperty("--pick", pickColour(selection.indexOf(each)));
  });
}

export function pickColour(place) {
  return `var(--pick-${place < 0 ? "hover" : place})`;
}

const tip = el("div", { class: "tip", role: "status", hidden: true });

export function showTip(event, lines) {
  if (!tip.isConnected) document.body.append(tip);
  tip.replaceChildren(...lines.map((line, i) => el("div", { class: i ? "" : "tip-title" }, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 14 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 14;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
}

export function hideTip() {
  tip.hidden = true;
}
