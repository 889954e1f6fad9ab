// The Live tab: what the microphone hears, as words.

import { addHints } from "/page/hints.js";
import { keep } from "/page/history-store.js";
import { LiveSession } from "/page/live-session.js";
import { Microphone, decibels } from "/page/microphone.js";
import { Recording, playPart } from "/page/recording.js";
import { addTools, saveFile } from "/page/tools.js";
import { TranscriptView, bySpeaker } from "/page/transcript-view.js";

const FLOOR_DB = -80;
const PEAK_FALL_DB = 1.2; // per block
const ANNOUNCED = 20;
const DEFAULT_LATENCY_MS = 160;

const at = (id) => document.getElementById(`live-${id}`);

let models = [];
let recording = null;
let session = null;
let microphone = null;
let wakeLock = null;
let gain = 0;
let hints = null;
let kept = null; // the entry of the history that grows with the text
let unsaved = false; // sound that was not saved
let peak = FLOOR_DB;

const view = new TranscriptView(at("text"), (start, end) => hear(start, end));

/** Called once with what the server has. */
export function startLive(server, handOver) {
  models = server.models;
  const choice = at("model");
  choice.replaceChildren(...models.map(({ name }) => new Option(name)));
  at("model-field").hidden = models.length < 2;
  choice.onchange = () => {
    showModes();
    session?.switchTo(way());
  };
  hints = addHints(at("hints"), () => session?.switchTo(way()));
  showModes();
  at("speakers").onchange = () => session?.switchTo(way());
  at("listen").disabled = false;
  at("listen").onclick = () => (microphone ? stop() : listen());
  tools(handOver);
}

function model() {
  return models.find(({ name }) => name === at("model").value);
}

/** Whether a reload would lose something: words to come, or sound. */
export function liveBusy() {
  return microphone !== null || unsaved;
}

/** What hears: a model, its latency mode or null where it has none, and hints. */
function way() {
  const mode = at("modes").querySelector(":checked");
  const speakers = at("speakers").checked;
  const latency = mode && Number(mode.value);
  return { model: model().name, latency, hints: hints.read(), speakers };
}

function showModes() {
  const { latencies_ms: latencies } = model();
  const usual = latencies.includes(DEFAULT_LATENCY_MS) ? DEFAULT_LATENCY_MS : latencies[0];
  const labels = latencies.map((ms) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "latency", value: ms, checked: ms === usual });
    input.onchange = () => session?.switchTo(way());
    label.append(input, `${ms} ms`);
    return label;
  });
  at("modes").replaceChildren(at("modes").querySelector("legend"), ...labels);
  at("modes").hidden = latencies.length === 0;
  at("pauses").hidden = latencies.length > 0;
}

function tools(handOver) {
  addTools(at("tools"), view, about, [
    ["Save sound", saveSound],
    ["Transcribe the whole", () => recording && handOver(recording.wav())],
    ["Clear", clear],
  ], keepText);
  showTools();
}

function saveSound() {
  if (!recording) return;
  saveFile(recording.wav(), `${about().name}.wav`);
  unsaved = microphone !== null;
}

/** Keeps the text so far in the history. */
async function keepText() {
  kept ??= { at: Date.now() };
  const entry = kept;
  const { model, duration } = about();
  const transcript = { segments: view.segments, duration, model, language: null };
  Object.assign(entry, { name: "Live", transcript });
  entry.keeping = (entry.keeping ?? Promise.resolve()).then(async () => {
    const { keeping, ...plain } = entry;
    const id = await keep(plain);
    if (id !== null) entry.id = id;
  });
  await entry.keeping;
}

function about() {
  return { model: model().name, duration: recording?.seconds ?? 0, name: "pianissimo" };
}

function showTools() {
  at("tools").hidden = view.empty;
}

// -- listening -----------------------------------------------------------------------------------

async function listen() {
  at("listen").disabled = true;
  note("");
  const early = [];
  try {
    // Blocks come before the recording can be made, whose rate is the microphone's.
    let take = (block) => early.push(block);
    microphone = await Microphone.open((block) => take(block), stop);
    if (recording?.rate !== microphone.rate) {
      view.clear();
      kept = null;
      recording = new Recording(microphone.rate);
    }
    begin();
    take = (block) => {
      recording.append(block.pcm);
      unsaved = true;
      showLevel(block);
    };
    early.forEach(take);
    wakeLock = await navigator.wakeLock?.request("screen").catch(() => null);
  } catch (error) {
    note(error.message, true);
    microphone = null;
  }
  at("listen").disabled = false;
  showListening();
}

function begin() {
  session = new LiveSession(recording, way(), {
    partial: ({ delay, ...partial }) => {
      view.setPartial(partial);
      if (delay !== null) at("delay").textContent = milliseconds(delay);
    },
    final: ({ delay, asked, ...final }) => {
      for (const part of bySpeaker(final)) view.add(part);
      if (delay !== null) at("final").textContent = milliseconds(delay);
      at("final").title = asked ? "since Stop" : "since the last word, including the pause";
      if (final.text) {
        announce(final.text);
        keepText();
      }
      showTools();
    },
    gain: (db) => {
      gain = db;
    },
    state: (state, why) => {
      note(state === "live" ? "" : `${capital(why)}; no audio is lost, reconnecting …`);
    },
    failed: (message) => {
      note(capital(message), true);
      session = null;
      stop();
    },
  });
}

async function stop() {
  if (!microphone) return;
  at("listen").disabled = true;
  const [closing, ending] = [microphone, session];
  microphone = null;
  await closing.close();
  wakeLock?.release();
  await ending?.finish();
  if (session === ending) session = null;
  at("listen").disabled = false;
  showListening();
  showLevel({ power: 0, peak: 0 });
  if (view.empty) {
    note("No speech found.");
    unsaved = false;
  }
}

function clear() {
  view.clear();
  kept = null;
  unsaved = false;
  if (microphone) return;
  recording = null;
  showTools();
}

async function hear(start, end) {
  view.follow((start + end) / 2);
  await playPart(recording, start, end);
  view.follow(null);
}

// -- showing -------------------------------------------------------------------------------------

function showListening() {
  at("listen").classList.toggle("listening", microphone !== null);
  at("listen").querySelector(".label").textContent = microphone ? "Stop" : "Listen";
}

function showLevel(block) {
  const level = decibels(block.power, FLOOR_DB);
  peak = Math.max(decibels(block.peak ** 2, FLOOR_DB), peak - PEAK_FALL_DB);
  const meter = at("meter");
  const share = (db) => Math.max(0, Math.min(1, 1 - db / FLOOR_DB));
  const silent = microphone === null;
  meter.querySelector(".input").style.transform = `scaleX(${share(level)})`;
  meter.querySelector(".heard").style.transform = `scaleX(${silent ? 0 : share(level + gain)})`;
  meter.querySelector(".peak").style.left = silent ? "-2px" : `${100 * share(peak)}%`;
  meter.setAttribute("aria-valuenow", Math.round(level));
  meter.setAttribute("aria-valuetext", `${Math.round(level)} decibels`);
  at("input").textContent = silent ? "–" : `${signed(level)} dBFS`;
  at("gain").textContent = silent ? "–" : `${signed(gain)} dB`;
}

function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  at("log").append(line);
  while (at("log").childElementCount > ANNOUNCED) at("log").firstChild.remove();
}

function note(text, wrong = false) {
  at("note").textContent = text;
  at("note").classList.toggle("wrong", wrong);
}

function milliseconds(value) {
  return `${Math.max(0, Math.round(value))} ms`;
}

function signed(db) {
  return `${db < 0 ? "−" : "+"}${Math.abs(Math.round(db))}`;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
