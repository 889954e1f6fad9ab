// The QuietBench tab: one clip at any level, and the report of the benchmark if there is one.

import { Microphone } from "/page/microphone.js";
import { decode, play, toInt16, wavFile } from "/page/recording.js";
import { read, request, transcribe } from "/page/server.js";

const RATE = 16000;
const FRAME = 320;
const SPEECH_RANGE_DB = 25; // frames softer than the loudest by more are taken for pauses
const RECORD_SECONDS = 4;
const SWEEP_DBFS = [-20, -30, -40, -50, -60, -70];

const at = (id) => document.getElementById(`quiet-${id}`);

let model = "";
let clip = null; // floats
let busy = false;

/** Called once with what the server has. */
export function startQuiet(server) {
  const chosen = server.models.find(({ gain }) => gain);
  model = chosen?.name;
  if (!chosen) note("These models normalize their input; gain has no effect.");
  at("input").onchange = async () => {
    const [file] = at("input").files;
    at("input").value = "";
    if (!file) return;
    try {
      use(await decode(file, RATE), file.name);
    } catch (error) {
      note(error.message);
    }
  };
  at("record").onclick = record;
  at("level").oninput = () => {
    at("value").textContent = decibels(Number(at("level").value));
  };
  at("play").onclick = () => play(softened(Number(at("level").value)), RATE);
  at("form").onsubmit = (event) => {
    event.preventDefault();
    hearAt([Number(at("level").value)]);
  };
  at("sweep").onclick = () => hearAt(SWEEP_DBFS);
  showReport(server.quietbench);
}

async function record() {
  const blocks = [];
  try {
    const microphone = await Microphone.open(({ pcm }) => blocks.push(pcm), () => {});
    at("record").classList.add("listening");
    at("record").disabled = true;
    note(`Speak for ${RECORD_SECONDS} seconds …`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * RECORD_SECONDS));
    const { rate } = microphone;
    await microphone.close();
    const length = blocks.reduce((sum, block) => sum + block.length, 0);
    use(await decode(wavFile(blocks, length, rate), RATE), "your recording");
  } catch (error) {
    note(error.message);
  }
  at("record").classList.remove("listening");
  at("record").disabled = false;
}

function use(samples, name) {
  clip = samples;
  at("name").textContent = `${name}, speech at ${decibels(speechLevel(samples))}`;
  at("form").hidden = !model;
  at("found").hidden = true;
  at("found").querySelector("tbody").replaceChildren();
  note("");
}

/** The level of the frames that are not pauses, in dBFS. */
function speechLevel(samples) {
  const powers = [];
  for (let i = 0; i + FRAME <= samples.length; i += FRAME) {
    powers.push(samples.subarray(i, i + FRAME).reduce((sum, x) => sum + x * x, 0) / FRAME);
  }
  const least = Math.max(...powers) / 10 ** (SPEECH_RANGE_DB / 10);
  const speech = powers.filter((power) => power >= least);
  return 10 * Math.log10(speech.reduce((sum, x) => sum + x, 0) / speech.length + 1e-12);
}

/** The clip at a level, in 16 bits. */
function softened(level) {
  return toInt16(clip, 10 ** ((level - speechLevel(clip)) / 20));
}

async function hearAt(levels) {
  if (busy) return;
  busy = true;
  for (const element of at("form").querySelectorAll("button")) element.disabled = true;
  at("found").hidden = false;
  try {
    for (const level of levels) {
      note(`Transcribing at ${decibels(level)} …`);
      const samples = softened(level);
      const file = wavFile([samples], samples.length, RATE);
      const off = await transcribe(file, { model, gain: "off" });
      const on = await transcribe(file, { model, gain: "on" });
      addRow(level, off, on);
    }
    note("");
  } catch (error) {
    note(error.message);
  }
  for (const element of at("form").querySelectorAll("button")) element.disabled = false;
  busy = false;
}

function addRow(level, ...found) {
  const row = at("found").querySelector("tbody").insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = decibels(level);
  row.append(head);
  for (const { text } of found) {
    const cell = row.insertCell();
    cell.textContent = text || "no speech found";
    if (!text) cell.className = "none";
  }
}

function decibels(level) {
  return `${Math.round(level)} dBFS`.replace("-", "−");
}

function note(text) {
  at("note").textContent = text;
}

// -- the report ----------------------------------------------------------------------------------

async function showReport(there) {
  const root = at("report");
  if (!there) {
    root.replaceChildren(
      paragraph("QuietBench measures word errors on quiet speech in five scenarios, with and without gain. Run it, then start the server with its folder:"),
      preformatted("pianissimo quietbench --output quietbench\npianissimo serve --quietbench quietbench"),
    );
    return;
  }
  try {
    const { systems } = await read(await request("/page/quietbench"));
    root.replaceChildren(paragraph("Word error rate with its 95 % confidence interval."), table(systems));
  } catch (error) {
    root.replaceChildren(paragraph(error.message));
  }
}

function table(systems) {
  const names = [...new Set(systems.flatMap(({ scenarios }) => Object.keys(scenarios)))];
  const found = document.createElement("table");
  const head = found.createTHead().insertRow();
  for (const name of ["Model", "Gain", ...names]) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    head.append(cell);
  }
  const body = found.createTBody();
  for (const { recognizer, gain, scenarios } of systems) {
    const row = body.insertRow();
    row.insertCell().textContent = recognizer;
    row.insertCell().textContent = gain;
    for (const name of names) row.insertCell().append(...rate(scenarios[name]?.error));
  }
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Results of QuietBench");
  scroll.append(found);
  return scroll;
}

function rate(error) {
  if (!error) return ["–"];
  const percent = (share) => (100 * share).toFixed(1);
  const spread = document.createElement("small");
  spread.textContent = ` ${percent(error.low)}–${percent(error.high)}`;
  return [`${percent(error.value)} %`, spread];
}

function paragraph(text) {
  const element = document.createElement("p");
  element.textContent = text;
  return element;
}

function preformatted(text) {
  const element = document.createElement("pre");
  element.textContent = text;
  element.tabIndex = 0;
  return element;
}
