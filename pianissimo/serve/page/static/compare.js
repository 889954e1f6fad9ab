// The Compare tab: one recording or microphone, transcribed by two models or in two modes.

import { align, plain } from "/page/align.js";
import { LiveSession } from "/page/live-session.js";
import { Microphone } from "/page/microphone.js";
import { Recording, decode, playPart, toInt16 } from "/page/recording.js";
import { transcribe } from "/page/server.js";
import { TranscriptView } from "/page/transcript-view.js";

const FILE_RATE = 16000;

const at = (id) => document.getElementById(`compare-${id}`);

let recording = null;
let microphone = null;
let running = null; // AbortController of what is under way

/** One side: who hears, and what was heard. */
class Lane {
  constructor(letter) {
    this.select = document.getElementById(`lane-${letter}`);
    this.took = document.getElementById(`took-${letter}`);
    this.view = new TranscriptView(document.getElementById(`text-${letter}`), (start, end) =>
      playPart(recording, start, end),
    );
  }

  /** Hear `recording`, which is complete once `ended` gives its file and the time of its end. */
  async hear(ended, signal) {
    const { model, latency } = this.select.selectedOptions[0].dataset;
    this.took.textContent = latency ? "listening …" : "waiting for the whole recording …";
    try {
      if (latency) await this.#live(model, Number(latency), ended, signal);
      else await this.#whole(model, ended, signal);
      const seconds = (performance.now() - (await ended).at) / 1000;
      const count = this.view.words.length;
      this.took.textContent = `${count || "no"} words, complete after ${seconds.toFixed(1)} s`;
    } catch (error) {
      this.took.textContent = signal.aborted ? "cancelled" : error.message;
    }
  }

  async #whole(model, ended, signal) {
    const { file } = await ended;
    const { segments } = await transcribe(file, { model, signal });
    for (const segment of segments) this.view.add(segment);
  }

  #live(model, latency, ended, signal) {
    return new Promise((resolve, reject) => {
      const session = new LiveSession(
        recording,
        { model, latency, start: 0 },
        {
          partial: (partial) => this.view.setPartial(partial),
          final: (final) => this.view.add(final),
          failed: (message) => reject(new Error(message)),
        },
      );
      signal.addEventListener("abort", () => {
        session.close();
        reject(signal.reason);
      });
      ended.then(() => session.finish()).then(resolve, reject);
    });
  }
}

const lanes = [new Lane("a"), new Lane("b")];

/** Called once with what the server has. */
export function startCompare({ models }) {
  const ways = models.flatMap(({ name, latencies_ms: latencies }) => [
    ...latencies.map((latency) => [name, latency, `${name}, live at ${latency} ms`]),
    [name, null, `${name}, whole`],
  ]);
  for (const { select } of lanes) {
    select.replaceChildren(
      ...ways.map(([model, latency, label]) => {
        const option = new Option(label);
        option.dataset.model = model;
        if (latency) option.dataset.latency = latency;
        return option;
      }),
    );
  }
  const second = models.length > 1 ? ways.findIndex(([name]) => name !== models[0].name) : 0;
  lanes[1].select.selectedIndex = second || Math.max(0, models[0].latencies_ms.length - 1);
  at("input").onchange = () => {
    const [file] = at("input").files;
    at("input").value = "";
    if (file) compareFile(file);
  };
  at("listen").onclick = () => (microphone ? stopMicrophone() : compareMicrophone());
  at("cancel").onclick = () => running?.abort(new Error("cancelled"));
}

async function compareFile(file) {
  const own = begin(file.name);
  try {
    recording = new Recording(FILE_RATE);
    recording.append(toInt16(await decode(file, FILE_RATE)));
    await compare(Promise.resolve({ file, at: performance.now() }), own);
  } catch (error) {
    note(error.message);
  }
  end(own);
}

let stopped = () => {};

async function compareMicrophone() {
  const own = begin("");
  const early = [];
  let take = (block) => early.push(block);
  try {
    microphone = await Microphone.open((block) => take(block), stopMicrophone);
    recording = new Recording(microphone.rate);
    take = ({ pcm }) => recording.append(pcm);
    early.forEach(take);
    showListening();
    const ended = new Promise((resolve) => {
      stopped = resolve;
    });
    own.signal.addEventListener("abort", stopMicrophone);
    await compare(ended, own);
  } catch (error) {
    note(error.message);
  }
  end(own);
}

async function stopMicrophone() {
  const closing = microphone;
  microphone = null;
  showListening();
  await closing?.close();
  stopped({ file: recording.wav(), at: performance.now() });
}

async function compare(ended, own) {
  await Promise.all(lanes.map((lane) => lane.hear(ended, own.signal)));
  if (!own.signal.aborted) markDifferences();
}

function begin(name) {
  running?.abort(new Error("cancelled"));
  const own = new AbortController();
  running = own;
  for (const { view } of lanes) view.clear();
  note("");
  at("name").textContent = name;
  at("cancel").hidden = false;
  return own;
}

function end(own) {
  if (running !== own) return;
  running = null;
  at("cancel").hidden = true;
}

function markDifferences() {
  const [left, right] = lanes.map(({ view }) => view.words.map((word) => plain(word.text)));
  const pairs = align(left, right);
  if (pairs.length === 0 && left.length * right.length > 0 && left.some((w) => right.includes(w))) {
    note("The texts are too long to mark their differences.");
    return;
  }
  const same = [new Set(pairs.map(([i]) => i)), new Set(pairs.map(([, k]) => k))];
  lanes.forEach(({ view }, i) => view.mark((index) => !same[i].has(index)));
  const alike = left.length === right.length && pairs.length === left.length;
  note(left.length + right.length === 0 ? "No speech found." : alike ? "Both transcripts are equal." : "");
}

function showListening() {
  at("listen").classList.toggle("listening", microphone !== null);
  at("listen").querySelector(".label").textContent = microphone ? "Stop" : "Use the microphone";
}

function note(text) {
  at("note").textContent = text;
}
