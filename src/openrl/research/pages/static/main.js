// Shows what the address asks for: the index (#/), a study (#/NAME), some of its attempts (#/NAME?3,7).

import { FrozenStudy, LiveStudy } from "./source.js";
import { showLibrary } from "./library.js";
import { showStudy } from "./study.js";

const root = document.getElementById("root");
const frozen = document.getElementById("data");
let leave = () => {};
let current = null;

function parseAddress(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const selected = query.split(",").filter((each) => /^[1-9][0-9]*$/.test(each)).map(Number);
  try {
    return { id: decodeURIComponent(path), selected };
  } catch {
    return { id: path, selected };
  }
}

function addressOf(id, selected = []) {
  return `#/${encodeURIComponent(id)}${selected.length ? `?${selected.join(",")}` : ""}`;
}

function openStudy(id, source, selected) {
  current = id;
  leave();
  leave = showStudy(root, source, selected, (chosen) => history.replaceState(null, "", addressOf(id, chosen)));
}

function route() {
  const { id, selected } = parseAddress(location.hash);
  if (id === current) return;
  if (id !== "") return openStudy(id, new LiveStudy(id), selected);
  current = "";
  leave();
  leave = showLibrary(root, addressOf, (only) => location.replace(addressOf(only)));
}

if (frozen) openStudy("", new FrozenStudy(JSON.parse(frozen.textContent)), parseAddress(location.hash).selected);
else {
  addEventListener("hashchange", route);
  route();
}
