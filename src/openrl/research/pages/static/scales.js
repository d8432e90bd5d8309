// From values to places on the screen, and to how good they are.

import { parameter } from "./format.js";

export function linear([low, high], [from, to]) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

// Round numbers within the domain, about so many.
export function ticks([low, high], about) {
  const rough = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Where most values are: on the side of bad ones far outliers do not squash the picture.
export function robustDomain(values, goal) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  let [low, high] = [at(0), at(1)];
  const middle = at(0.9) - at(0.1);
  if (goal === "maximize") low = Math.max(low, at(0.1) - 3 * middle);
  else high = Math.min(high, at(0.9) + 3 * middle);
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  return [low - margin, high + margin];
}

// 0 for the worst to 1 for the best, by rank: outliers do not take the colours from the others.
export function goodness(attempts, goal) {
  const sign = goal === "maximize" ? 1 : -1;
  const values = attempts.filter((each) => each.value !== null).map((each) => sign * each.value).sort((a, b) => a - b);
  const ranks = new Map(values.map((value, i) => [value, values.length > 1 ? i / (values.length - 1) : 1]));
  return (value) => ranks.get(sign * value) ?? 0;
}

// One axis of the parallel coordinates: place(value) in 0..1 from the bottom, and the labels on it.
export function parameterAxis(space, values) {
  if (space.kind === "choice") {
    const known = [...new Set([...space.values, ...values].map(String))];
    const place = (value) => (known.length > 1 ? known.indexOf(String(value)) / (known.length - 1) : 0.5);
    const every = Math.ceil(known.length / 12);
    return { name: space.name, place, labels: known.filter((_, i) => i % every === 0).map((each) => [place(each), parameter(toNumber(each))]) };
  }
  const numbers = [space.low, space.high, ...values.filter((each) => typeof each === "number")];
  const to = space.log ? Math.log10 : (value) => value;
  const domain = [to(Math.min(...numbers)), to(Math.max(...numbers))];
  const place = (value) => (typeof value === "number" ? linear(domain, [0, 1])(to(value)) : null);
  const marks = space.log ? logTicks(domain) : ticks(domain, 5);
  const labels = marks.length > 1 ? marks : domain.map((each) => (space.log ? 10 ** each : each));
  return { name: space.name, place, labels: labels.map((each) => [place(each), parameter(Number(each.toPrecision(3)))]) };
}

function logTicks([low, high]) {
  const found = [];
  const factors = high - low > 3 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 5];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const factor of factors) found.push(Number((factor * 10 ** power).toPrecision(3)));
  }
  return found.filter((each) => Math.log10(each) >= low - 1e-9 && Math.log10(each) <= high + 1e-9);
}

function toNumber(text) {
  return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}
