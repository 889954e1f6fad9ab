// The Speak tab: a text spoken while it is synthesized, and saved.

import { PcmPlayer } from "/page/pcm-player.js";
import { read, request } from "/page/server.js";
import { button, saveFile } from "/page/tools.js";

const RATE = 24_000; // of `pcm`, in Hz
const HEADER_BYTES = 44;

const at = (id) => document.getElementById(`speak-${id}`);

let running = null;

/** Called once with what the server has. */
export function startSpeak(server) {
  at("voice").replaceChildren(...server.voices.map((name) => new Option(name)));
  at("voice-field").hidden = server.voices.length < 2;
  at("stop").onclick = () => running?.abort();
  at("speed").oninput = () => {
    at("speed-value").textContent = `${Number(at("speed").value).toFixed(2)} ×`;
  };
  if (server.voices.length === 0) {
    note("No voice is installed on the server: pip install 'pianissimo[tts]'.", true);
    return;
  }
  at("start").disabled = false;
  at("form").onsubmit = (event) => {
    event.preventDefault();
    speak();
  };
}

async function speak() {
  running?.abort();
  const own = new AbortController();
  running = own;
  note("");
  at("tools").replaceChildren();
  at("stop").hidden = false;
  const player = new PcmPlayer(RATE);
  const pieces = [];
  own.signal.addEventListener("abort", () => player.close());
  try {
    const started = performance.now();
    const body = {
      input: at("text").value,
      voice: at("voice").value,
      speed: Number(at("speed").value),
      response_format: "pcm",
    };
    const response = await request("/v1/audio/speech", {
      method: "POST",
      body: new Blob([JSON.stringify(body)], { type: "application/json" }),
      signal: own.signal,
    });
    if (!response.ok) await read(response);
    let first = null;
    for await (const bytes of response.body) {
      first ??= performance.now() - started;
      pieces.push(bytes);
      player.add(bytes);
    }
    note(`First audio after ${Math.round(first)} ms; ${player.added().toFixed(1)} s of speech.`);
    at("tools").replaceChildren(
      button("Save as wav", () => saveFile(wav(pieces), "speech.wav")),
    );
    await player.end();
  } catch (error) {
    if (running === own) note(own.signal.aborted ? "Stopped." : error.message, !own.signal.aborted);
  } finally {
    if (running === own) at("stop").hidden = true;
    player.close();
  }
}

/** A WAV file of 16-bit samples. */
function wav(pieces) {
  const size = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const header = new DataView(new ArrayBuffer(HEADER_BYTES));
  const text = (place, letters) => {
    for (const [i, letter] of [...letters].entries()) header.setUint8(place + i, letter.charCodeAt(0));
  };
  text(0, "RIFF");
  header.setUint32(4, HEADER_BYTES - 8 + size, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // mono
  header.setUint32(24, RATE, true);
  header.setUint32(28, 2 * RATE, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, size, true);
  return new Blob([header, ...pieces], { type: "audio/wav" });
}

function note(text, wrong = false) {
  at("note").textContent = text;
  at("note").classList.toggle("wrong", wrong);
}
