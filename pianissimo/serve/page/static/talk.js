// The Talk tab: a spoken conversation with the language model of the server.

import { Conversation, RATE } from "/page/conversation.js";
import { ECHO_CANCELED, Microphone } from "/page/microphone.js";

const ROLES = { user: "You", agent: "Agent" };

const at = (id) => document.getElementById(`talk-${id}`);

let conversation = null;
let microphone = null;
let lines = new Map(); // id of an item -> its line in the transcript
let turns = new Set(); // ids of the user's items that count
let unsure = null; // the user's item that may not become a turn

/** Called once with what the server has. */
export function startTalk(server) {
  at("model").replaceChildren(...server.models.map(({ name }) => new Option(name)));
  at("model-field").hidden = server.models.length < 2;
  if (server.language_model === null) {
    at("missing").hidden = false;
    return;
  }
  at("language-model").textContent = server.language_model;
  at("start").disabled = false;
  at("start").onclick = () => (conversation ? stop() : start());
  startHolding();
}

/** With push-to-talk the user speaks while the button, or the space bar on it, is held. */
function startHolding() {
  const button = at("hold");
  button.onpointerdown = (event) => {
    button.setPointerCapture(event.pointerId);
    begin();
  };
  button.onpointerup = button.onpointercancel = button.onblur = end;
  button.onkeydown = (event) => {
    if (event.key === " " && !event.repeat) begin();
  };
  button.onkeyup = (event) => {
    if (event.key === " ") end();
  };
  button.oncontextmenu = (event) => event.preventDefault(); // of a long touch
}

function begin() {
  note("");
  conversation?.begin();
  at("hold").classList.add("listening");
}

function end() {
  if (!at("hold").classList.contains("listening")) return;
  at("hold").classList.remove("listening");
  if (conversation && !conversation.end()) note("That was too short. Hold the button while you speak.");
}

async function start() {
  at("start").disabled = true;
  note("");
  at("text").replaceChildren();
  at("latency").textContent = "–";
  [lines, turns, unsure] = [new Map(), new Set(), null];
  try {
    const pushToTalk = at("push").checked;
    const handlers = {
      text: ({ id, role, delta }) => line(id, role).append(delta),
      final,
      committed: (id) => turns.add(id),
      interrupted: (id) => lines.get(id)?.classList.add("interrupted"),
      latency: (ms) => {
        at("latency").textContent = `${Math.round(ms)} ms`;
      },
      problem: (message) => note(message, true),
      ended: (message) => {
        note(message, true);
        stop();
      },
    };
    const own = new Conversation(at("model").value, handlers, { pushToTalk });
    conversation = own;
    const options = { processing: ECHO_CANCELED, rate: RATE };
    const opened = await Microphone.open(({ pcm }) => own.push(pcm), stop, options);
    if (conversation === own) microphone = opened;
    else opened.close();
  } catch (error) {
    note(error.message, true);
    stop();
  }
  at("start").disabled = false;
  showTalking();
}

function stop() {
  conversation?.close();
  microphone?.close();
  [conversation, microphone] = [null, null];
  showTalking();
}

function final({ id, role, text }) {
  const found = line(id, role);
  found.textContent = text;
  if (text === "") remove(id);
}

function remove(id) {
  lines.get(id)?.closest(".turn").remove();
  lines.delete(id);
}

/** The line of an item, a new one at the end if it has none. */
function line(id, role) {
  if (lines.has(id)) return lines.get(id);
  const turn = document.createElement("div");
  const name = document.createElement("span");
  const text = document.createElement("p");
  turn.className = `turn ${role}`;
  name.className = "role";
  name.textContent = ROLES[role];
  turn.append(name, text);
  if (role === "user") {
    if (unsure !== null && !turns.has(unsure)) remove(unsure); // a noise, or a "yeah"
    unsure = id;
  }
  at("text").append(turn);
  at("text").scrollTop = at("text").scrollHeight;
  lines.set(id, text);
  return text;
}

function showTalking() {
  at("start").classList.toggle("listening", conversation !== null);
  at("start").querySelector(".label").textContent = conversation ? "Stop" : "Talk";
  at("push").disabled = conversation !== null;
  at("hold").hidden = conversation === null || !at("push").checked;
}

function note(text, wrong = false) {
  at("note").textContent = text;
  at("note").classList.toggle("wrong", wrong);
}
