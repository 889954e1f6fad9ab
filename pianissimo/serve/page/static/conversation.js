// A spoken conversation over /v1/realtime: see docs/voice-agent.md for the protocol.
//
// The server finds the turns of the user, or the user holds a button: `begin` and `end`. When the user
// begins to speak, the answer is stopped here at once, and the server is told how much of it was played.

import { PcmPlayer } from "/page/pcm-player.js";
import { openSocket } from "/page/server.js";

/** Of the audio in both directions, in Hz. */
export const RATE = 24_000;
const TRANSCRIPTION = "conversation.item.input_audio_transcription";
const NORMAL = 1000;
const LEAST_TURN_MS = 150; // with a button; the server refuses turns of less than 100 ms

export class Conversation {
  #socket;
  #handlers;
  #player = new PcmPlayer(RATE);
  #sentMs = 0; // audio of the microphone
  #sentAt = 0; // when the last of it was recorded, by performance.now()
  #speechEnd = null; // of the user, by performance.now(), until the answer begins
  #stopped = new Set(); // answers of which no more is played
  #pushToTalk;
  #heldMs = null; // audio of the turn while the button is held
  #response = null; // id of the answer in progress
  #problem = null; // of the last `error` event
  #over = false;

  /**
   * Of the `handlers`, `text({id, role, delta})` gets more text of an item and `final({id, role,
   * text})` all of it; `committed(id)` says that the turn of the user counts, `interrupted(id)` that
   * an answer was stopped; `latency(ms)` is the time from the end of the user's speech to the first
   * audio played; `problem(message)` is a fault after which it goes on, `ended(message)` one after
   * which it does not. With `pushToTalk` only what is said between `begin` and `end` is sent.
   */
  constructor(model, handlers, { pushToTalk = false } = {}) {
    this.#handlers = handlers;
    this.#pushToTalk = pushToTalk;
    const socket = openSocket("/v1/realtime");
    this.#socket = socket;
    const input = { format: { type: "audio/pcm", rate: RATE }, transcription: { model } };
    if (pushToTalk) input.turn_detection = null;
    const session = { type: "realtime", audio: { input } };
    socket.onopen = () => this.#send("session.update", { session });
    socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => {
      if (this.#over) return;
      const why = this.#problem ?? (reason || "the connection to the server was lost");
      this.close();
      handlers.ended(code === NORMAL ? "the server ended the conversation" : why);
    };
  }

  /** Send samples of the microphone, an Int16Array; they are dropped before the session is open. */
  push(samples) {
    if (!this.#open || (this.#pushToTalk && this.#heldMs === null)) return;
    const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
    this.#send("input_audio_buffer.append", { audio: btoa(String.fromCharCode(...bytes)) });
    const ms = (1000 * samples.length) / RATE;
    this.#sentMs += ms;
    if (this.#heldMs !== null) this.#heldMs += ms;
    this.#sentAt = performance.now();
  }

  get #open() {
    return !this.#over && this.#socket.readyState === WebSocket.OPEN;
  }

  /** With push-to-talk: the user's turn begins, and an answer stops. */
  begin() {
    if (!this.#open || this.#heldMs !== null) return;
    this.#heldMs = 0;
    if (this.#response !== null) this.#cancel();
    this.#interrupt();
  }

  /** The user's turn ends, and is answered; returns whether it was long enough for that. */
  end() {
    if (!this.#open || this.#heldMs === null) return true;
    const enough = this.#heldMs >= LEAST_TURN_MS;
    this.#heldMs = null;
    if (!enough) {
      this.#send("input_audio_buffer.clear", {});
      return false;
    }
    this.#speechEnd = performance.now();
    this.#send("input_audio_buffer.commit", {});
    this.#send("response.create", {});
    return true;
  }

  #cancel() {
    this.#send("response.cancel", { response_id: this.#response });
  }

  /** End it: the answer falls silent, and the server stops its work. */
  close() {
    this.#over = true;
    this.#socket.close();
    this.#player.close();
  }

  #send(type, fields) {
    this.#socket.send(JSON.stringify({ type, ...fields }));
  }

  #take(event) {
    if (this.#over) return;
    const { item_id: id } = event;
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.#interrupt();
        break;
      case "input_audio_buffer.speech_stopped":
        this.#speechEnd = this.#sentAt - (this.#sentMs - event.audio_end_ms);
        break;
      case "input_audio_buffer.committed":
        this.#handlers.committed(id);
        break;
      case `${TRANSCRIPTION}.delta`:
        this.#handlers.text({ id, role: "user", delta: event.delta });
        break;
      case `${TRANSCRIPTION}.completed`:
        this.#handlers.final({ id, role: "user", text: event.transcript });
        break;
      case "response.output_audio_transcript.delta":
        this.#handlers.text({ id, role: "agent", delta: event.delta });
        break;
      case "response.output_audio_transcript.done":
        this.#handlers.final({ id, role: "agent", text: event.transcript });
        break;
      case "response.output_audio.delta":
        this.#play(id, Uint8Array.from(atob(event.delta), (letter) => letter.charCodeAt(0)));
        break;
      case "response.created":
        this.#response = event.response.id;
        if (this.#heldMs !== null) this.#cancel();
        break;
      case "response.done":
        this.#response = null;
        if (event.response.status === "failed") {
          this.#handlers.problem(event.response.status_details.error.message);
        }
        break;
      case "error":
        if (event.error.code === "response_cancel_not_active") break; // it had ended by itself
        this.#problem = event.error.message;
        this.#handlers.problem(event.error.message);
    }
  }

  #play(id, bytes) {
    if (this.#stopped.has(id) || this.#heldMs !== null) return;
    const begins = this.#player.add(bytes, id);
    if (this.#speechEnd === null || begins === null) return;
    this.#handlers.latency(begins - this.#speechEnd);
    this.#speechEnd = null;
  }

  #interrupt() {
    this.#speechEnd = null;
    const id = this.#player.playing;
    if (id === undefined) return;
    const played = Math.floor(1000 * this.#player.played(id));
    this.#player.stop();
    this.#stopped.add(id);
    const place = { item_id: id, content_index: 0, audio_end_ms: played };
    this.#send("conversation.item.truncate", place);
    this.#handlers.interrupted(id);
  }
}
