// The File tab: recordings transcribed whole, one after the other, with their words and sound.

import { addFind } from "/page/find.js";
import { addHints } from "/page/hints.js";
import { keep } from "/page/history-store.js";
import { Queue } from "/page/queue.js";
import { LEAD_SECONDS } from "/page/recording.js";
import { transcribe } from "/page/server.js";
import { addTools, button } from "/page/tools.js";
import { TranscriptView, clock } from "/page/transcript-view.js";

const REASONS = {
  too_short: "it is too short to contain a word",
  muted: "it contains no sound; was the microphone muted?",
  silence: "it is silent",
  low_evidence: "nothing in it sounds like speech, so the text of the model is not shown",
};
const REMARKS = {
  too_short: "The recording is very short; words may be wrong.",
  repetition: "A repetition loop of the model was removed.",
  low_evidence: "Little of it sounds like speech; check the text.",
  truncated: "The text may be incomplete; the model reached its limit.",
};

const at = (id) => document.getElementById(`file-${id}`);

let server = null;
let hints = null;
let find = null;
let shown = null; // the item of the queue that is on the page

const queue = new Queue(work, showQueue);
const view = new TranscriptView(at("text"), (start) => {
  at("audio").currentTime = Math.max(0, start - LEAD_SECONDS);
  at("audio").play().catch(() => {});
});

/** Called once with what the server has. */
export function startFile(described) {
  server = described;
  at("model").replaceChildren(...server.models.map((model) => new Option(model.name)));
  at("model-field").hidden = server.models.length < 2;
  hints = addHints(at("hints"));
  find = addFind(at("find"), view);
  at("input").onchange = () => {
    const files = [...at("input").files];
    at("input").value = "";
    if (files.length) take(files);
  };
  at("cancel").onclick = () => queue.running && queue.cancel(queue.running);
  at("audio").ontimeupdate = () => {
    const seconds = at("audio").paused ? null : at("audio").currentTime;
    view.follow(seconds, at("follow").checked);
  };
  at("audio").onpause = () => view.follow(null);
  at("audio").onerror = () => {
    at("audio").hidden = true;
    at("follow-field").hidden = true;
  };
  addTools(at("tools"), view, () => ({ ...shown.transcript, name: stem(shown.name) }), [], (segments) => {
    shown.transcript = { ...shown.transcript, segments };
    keepItem(shown);
  });
  at("tools").hidden = true;
}

/** Whether a recording still waits for its transcript. */
export function fileBusy() {
  return queue.busy;
}

/** Transcribe files, behind those that are under way. */
export function take(files) {
  const idle = !queue.busy;
  const [first] = queue.add(files);
  if (idle) open(first);
}

async function work(item, signal) {
  if (item.file.size > 1e6 * server.largest_upload_mb) {
    throw new Error(`the file is larger than the ${server.largest_upload_mb} MB this server accepts.`);
  }
  at("name").textContent = item.name;
  at("state").textContent = "uploading …";
  at("progress").removeAttribute("value");
  const { language, hotwords } = hints.read();
  const model = at("model").value;
  const transcript = await transcribe(item.file, {
    model,
    language,
    hotwords,
    speakers: at("speakers").value,
    signal,
    progress: showProgress,
  });
  item.transcript = transcript;
  if (transcript.text !== "") await keepItem(item);
  return transcript;
}

async function keepItem(item) {
  const { segments, duration, model, language } = item.transcript;
  item.at ??= Date.now();
  const entry = { name: stem(item.name), at: item.at, transcript: { segments, duration, model, language } };
  const id = await keep(item.id === undefined ? entry : { ...entry, id: item.id });
  if (id !== null) item.id = id;
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}

// -- showing -------------------------------------------------------------------------------------

function showQueue() {
  const { items, running } = queue;
  at("work").hidden = running === null;
  at("queue").hidden = items.length < 2;
  at("queue").replaceChildren(
    ...items.map((item) => {
      const row = document.createElement("li");
      const opener = button(item.name, () => open(item));
      opener.className = "link";
      opener.setAttribute("aria-current", item === shown);
      const state = document.createElement("span");
      state.className = "hint";
      state.textContent = item.state === "failed" ? item.text : item.state;
      row.append(opener, state);
      if (item.state === "waiting") row.append(button("Remove", () => queue.cancel(item)));
      return row;
    }),
  );
  if (shown && shown.state !== shown.shownState) showResult();
}

function open(item) {
  shown = item;
  item.shownState = null;
  URL.revokeObjectURL(at("audio").src);
  at("audio").src = URL.createObjectURL(item.file);
  at("audio").hidden = false;
  at("follow-field").hidden = false;
  showQueue();
}

function showProgress({ decoded, consumed }) {
  if (consumed === 0) {
    at("state").textContent = decoded ? `decoding: ${clock(decoded)}` : "waiting for a free place …";
    return;
  }
  at("state").textContent = `transcribing: ${clock(consumed)} of ${clock(decoded)}`;
  at("progress").value = consumed / decoded;
}

function showResult() {
  shown.shownState = shown.state;
  view.clear();
  find.clear();
  at("paper").hidden = true;
  at("tools").hidden = true;
  if (shown.state !== "done") {
    note(shown.text.charAt(0).toUpperCase() + shown.text.slice(1), shown.state === "failed");
    return;
  }
  const { text, segments, reasons = [], remarks = [] } = shown.transcript;
  const told = remarks.map((remark) => `Note: ${remark}.`);
  if (text === "") {
    const why = reasons.map((reason) => REASONS[reason]).find(Boolean);
    note([`No speech found${why ? `: ${why}` : ""}.`, ...told].join(" "));
    return;
  }
  note([...reasons.map((reason) => REMARKS[reason]).filter(Boolean), ...told].join(" "));
  for (const segment of segments) view.add(segment);
  at("paper").hidden = false;
  at("tools").hidden = false;
}

function note(text, wrong = false) {
  at("note").textContent = text;
  at("note").classList.toggle("wrong", wrong);
}
