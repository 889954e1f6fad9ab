// The page: its tabs, and what the server has handed to each of them.

import { startCompare } from "/page/compare.js";
import { acceptDrops } from "/page/drop.js";
import { fileBusy, startFile, take } from "/page/file.js";
import { startHistory } from "/page/history.js";
import { startInterfaces } from "/page/interfaces.js";
import { liveBusy, startLive } from "/page/live.js";
import { startOperator } from "/page/operator.js";
import { startQuiet } from "/page/quiet.js";
import { describe } from "/page/server.js";
import { startSpeak } from "/page/speak.js";
import { startTalk } from "/page/talk.js";
import { addThemeSwitch } from "/page/theme.js";

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

for (const tab of tabs) {
  tab.onclick = () => go(tab.getAttribute("aria-controls"));
  tab.onkeydown = (event) => {
    const open = tabs.filter((each) => !each.hidden);
    const here = open.indexOf(tab);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: open.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(open[(to + open.length) % open.length].getAttribute("aria-controls"), true);
  };
}
addEventListener("hashchange", () => {
  if (location.hash !== "#main") show(location.hash.slice(1));
});
show(location.hash.slice(1));
addThemeSwitch(document.getElementById("top"));
startInterfaces();
startHistory();
addEventListener("beforeunload", (event) => {
  if (liveBusy() || fileBusy()) event.preventDefault();
});

try {
  const server = await describe();
  document.getElementById("served").textContent = server.models.map(({ name }) => name).join(", ");
  const transcribeFiles = (files) => {
    go("file", true);
    take(files);
  };
  startLive(server, (file) => transcribeFiles([file]));
  startFile(server);
  startSpeak(server);
  startTalk(server);
  startCompare(server);
  startQuiet(server);
  startOperator(server);
  acceptDrops(transcribeFiles);
} catch (error) {
  const note = document.getElementById("live-note");
  note.textContent = `The server sent an unexpected answer: ${error.message}`;
  note.classList.add("wrong");
}
