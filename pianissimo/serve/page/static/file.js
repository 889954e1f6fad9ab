// The File tab: a recording transcribed whole, with its words beside its audio.

import { LEAD_SECONDS } from "/page/recording.js";
import { transcribe } from "/page/server.js";
import { addTools } from "/page/tools.js";
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
let running = null;
let found = null;
let name = "";

const view = new TranscriptView(at("text"), (start) => {
  at("audio").currentTime = Math.max(0, start - LEAD_SECONDS);
  at("audio").play().catch(() => {});
});

/** Called once with what the server has. */
export function startFile(described) {
  server = described;
  at("model").replaceChildren(...server.models.map((model) => new Option(model.name)));
  at("model-field").hidden = server.models.length < 2;
  at("input").onchange = () => {
    const [file] = at("input").files;
    at("input").value = "";
    if (file) take(file);
  };
  at("cancel").onclick = () => running?.abort();
  acceptDrops(at("drop"), take);
  at("audio").ontimeupdate = () => view.follow(at("audio").paused ? null : at("audio").currentTime);
  at("audio").onpause = () => view.follow(null);
  at("audio").onerror = () => {
    at("audio").hidden = true;
  };
  addTools(at("tools"), view, () => ({ ...found, name }));
  at("tools").hidden = true;
}

/** Transcribe a file, instead of the one that may be under way. */
export async function take(file) {
  running?.abort();
  const own = new AbortController();
  running = own;
  reset(file);
  if (file.size > 1e6 * server.largest_upload_mb) {
    fail(`The file is larger than the ${server.largest_upload_mb} MB this server accepts.`);
    return;
  }
  at("work").hidden = false;
  try {
    const transcript = await transcribe(file, {
      model: at("model").value,
      signal: own.signal,
      progress: (news) => showProgress(news),
    });
    if (running === own) show(transcript);
  } catch (error) {
    if (running !== own) return;
    if (own.signal.aborted) note("Cancelled.");
    else fail(error.message);
  } finally {
    if (running === own) at("work").hidden = true;
  }
}

function reset(file) {
  found = null;
  name = file.name.replace(/\.[^.]*$/, "");
  view.clear();
  note("");
  at("name").textContent = file.name;
  at("state").textContent = "uploading …";
  at("progress").removeAttribute("value");
  at("paper").hidden = true;
  at("tools").hidden = true;
  URL.revokeObjectURL(at("audio").src);
  at("audio").src = URL.createObjectURL(file);
  at("audio").hidden = false;
}

function showProgress({ decoded, consumed }) {
  if (consumed === 0) {
    at("state").textContent = decoded ? `decoding: ${clock(decoded)}` : "waiting for a free place …";
    return;
  }
  at("state").textContent = `transcribing: ${clock(consumed)} of ${clock(decoded)}`;
  at("progress").value = consumed / decoded;
}

function show(transcript) {
  found = transcript;
  const reasons = transcript.reasons ?? [];
  if (transcript.text === "") {
    const why = reasons.map((reason) => REASONS[reason]).find(Boolean);
    note(`No speech found${why ? `: ${why}` : ""}.`);
    return;
  }
  note(reasons.map((reason) => REMARKS[reason]).filter(Boolean).join(" "));
  for (const segment of transcript.segments) view.add(segment);
  at("paper").hidden = false;
  at("tools").hidden = false;
}

function fail(text) {
  note(text.charAt(0).toUpperCase() + text.slice(1), true);
}

function note(text, wrong = false) {
  at("note").textContent = text;
  at("note").classList.toggle("wrong", wrong);
}

function acceptDrops(element, accept) {
  const over = (on) => (event) => {
    event.preventDefault();
    element.classList.toggle("over", on);
  };
  element.addEventListener("dragover", over(true));
  element.addEventListener("dragleave", over(false));
  element.addEventListener("drop", (event) => {
    over(false)(event);
    const [file] = event.dataTransfer.files;
    if (file) accept(file);
  });
}
