// Numbers, times and parameter values as people read them.

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e").replace("e+", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

// With the same number of digits everywhere, for columns.
export function digits(value) {
  return value !== null && value !== undefined && Math.abs(value) >= 1e-3 && Math.abs(value) < 1e3 ? value.toPrecision(4) : number(value);
}

export function count(value) {
  if (value === null || value === undefined) return "–";
  for (const [bound, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= bound) return `${number(value / (unit === "k" ? 1e3 : bound), 3)} ${unit}`;
  }
  return number(Math.round(value * 10) / 10);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${whole % 60}s`;
  return `${Math.floor(whole / 3600)}h ${Math.floor((whole % 3600) / 60)}m`;
}

export function parameter(value) {
  if (value === undefined) return "–";
  return typeof value === "number" ? number(value) : String(value);
}

export function attemptLines(attempt, study) {
  const lines = [`Attempt ${attempt.number}, ${attempt.state}`, `${study.metric} ${number(attempt.value)}`];
  for (const [name, value] of Object.entries(attempt.params)) lines.push(`${name} ${parameter(value)}`);
  return lines;
}
