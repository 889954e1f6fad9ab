// The page: its tabs, and what the server has handed to each of them.

import { startCompare } from "/page/compare.js";
import { startFile, take } from "/page/file.js";
import { startInterfaces } from "/page/interfaces.js";
import { startLive } from "/page/live.js";
import { startQuiet } from "/page/quiet.js";
import { describe } from "/page/server.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const FIRST = "live";

function show(name, focus = false) {
  const known = tabs.some((tab) => tab.getAttribute("aria-controls") === name);
  for (const tab of tabs) {
    const panel = tab.getAttribute("aria-controls");
    const chosen = panel === (known ? name : FIRST);
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(panel).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
}

function go(name, focus) {
  history.replaceState(null, "", `#${name}`);
  show(name, focus);
}

for (const [i, tab] of tabs.entries()) {
  tab.onclick = () => go(tab.getAttribute("aria-controls"));
  tab.onkeydown = (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(tabs[(to + tabs.length) % tabs.length].getAttribute("aria-controls"), true);
  };
}
addEventListener("hashchange", () => {
  if (location.hash !== "#main") show(location.hash.slice(1));
});
show(location.hash.slice(1));
startInterfaces();

try {
  const server = await describe();
  document.getElementById("served").textContent = server.models.map(({ name }) => name).join(", ");
  startLive(server, (file) => {
    go("file", true);
    take(file);
  });
  startFile(server);
  startCompare(server);
  startQuiet(server);
} catch (error) {
  const note = document.getElementById("live-note");
  note.textContent = `The server sent an unexpected answer: ${error.message}`;
  note.classList.add("wrong");
}
