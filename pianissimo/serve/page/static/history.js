// The History tab: transcripts that this browser has kept, to read, correct, export and delete.

import { entries, keep, remove, removeAll } from "/page/history-store.js";
import { toText } from "/page/subtitles.js";
import { addTools, button, saveFile } from "/page/tools.js";
import { addFind } from "/page/find.js";
import { TranscriptView, clock } from "/page/transcript-view.js";

const PREVIEW_CHARACTERS = 80;

const at = (id) => document.getElementById(`history-${id}`);

let shown = null; // the entry whose transcript is open

const view = new TranscriptView(at("text"), () => {});

/** Called once. */
export function startHistory() {
  const find = addFind(at("find"), view);
  addTools(at("tools"), view, () => ({ ...shown.transcript, name: shown.name }), [], (segments) => {
    shown.transcript = { ...shown.transcript, segments };
    keep(shown);
  });
  at("export").onclick = async () => {
    const all = JSON.stringify(await entries(), null, 2);
    saveFile(new Blob([`${all}\n`], { type: "application/json" }), "pianissimo-history.json");
  };
  at("delete").onclick = async () => {
    if (!confirm("Delete all transcripts that this browser has kept?")) return;
    await removeAll();
    close();
  };
  addEventListener("history-changed", list);
  at("list").onclick = ({ target }) => target.dataset.id && open(Number(target.dataset.id));
  list();

  async function open(id) {
    shown = (await entries()).find((entry) => entry.id === id) ?? null;
    if (shown === null) return;
    view.clear();
    for (const segment of shown.transcript.segments) view.add(segment);
    find.clear();
    at("name").textContent = shown.name;
    at("open").hidden = false;
  }
}

function close() {
  shown = null;
  at("open").hidden = true;
}

async function list() {
  const found = await entries();
  at("list").replaceChildren(...found.map(row));
  for (const id of ["export", "delete"]) at(id).disabled = found.length === 0;
  at("empty").hidden = found.length > 0;
}

function row(entry) {
  const { id, name, transcript } = entry;
  const item = document.createElement("li");
  const opener = button(name, () => {});
  opener.dataset.id = id;
  opener.className = "link";
  const about = document.createElement("span");
  about.className = "hint";
  const when = new Date(entry.at).toLocaleString();
  about.textContent = `${when}, ${clock(transcript.duration)}: ${preview(transcript)}`;
  const gone = button("Delete", async () => {
    await remove(id);
    if (shown?.id === id) close();
  });
  gone.setAttribute("aria-label", `Delete ${name}`);
  item.append(opener, about, gone);
  return item;
}

function preview(transcript) {
  const text = toText(transcript).replaceAll("\n", " ").trim();
  return text.length > PREVIEW_CHARACTERS ? `${text.slice(0, PREVIEW_CHARACTERS)} …` : text;
}
