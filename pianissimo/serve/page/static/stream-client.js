// One stream of /v1/stream that outlives its connections: see docs/server-api.md for the protocol.
//
// What is sent is numbered in frames, what comes back in events. After a cut both sides go on
// behind the last number that the other one has, so nothing is lost or doubled.

import { openSocket } from "/page/server.js";

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5000;
const NORMAL = 1000;
const POLICY = 1008;

export class StreamClient {
  #frames = []; // sent or not, but not acknowledged
  #acknowledged = 0;
  #sent = 0;
  #events = 0;
  #token = null;
  #socket = null;
  #ready = false;
  #over = false;
  #problem = null;
  #pause = FIRST_PAUSE_MS;
  #timer = 0;
  #room = [];

  /**
   * `start` is the first message without its type. Of the `handlers`, `event` gets every partial,
   * final, endpoint and the end; `state` "live" or "away" with a reason; `gain` the gain in dB;
   * `lost` is called when the server has forgotten the stream, `failed` when it refuses it.
   */
  constructor(start, handlers) {
    this.start = start;
    this.handlers = handlers;
    this.#connect();
  }

  /** Frames that the server has not confirmed yet. */
  get waiting() {
    return this.#frames.length;
  }

  /** Resolves when the server has confirmed some more, or nothing will come of it. */
  room() {
    return this.#over ? Promise.resolve() : new Promise((resolve) => this.#room.push(resolve));
  }

  /** Queue samples, an Int16Array; needs no connection at that moment. */
  send(samples) {
    this.#queue(samples);
  }

  /** The audio has ended: the final with the reason "finish" will come. */
  finish() {
    this.#queue(JSON.stringify({ type: "finish" }));
  }

  /** Leave without the rest of the text. */
  close() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#socket.close();
    this.#wake();
  }

  #queue(frame) {
    if (this.#over) return;
    this.#frames.push(frame);
    this.#flush();
  }

  #flush() {
    if (!this.#ready || this.#socket.readyState !== WebSocket.OPEN) return;
    while (this.#sent < this.#acknowledged + this.#frames.length) {
      this.#socket.send(this.#frames[this.#sent - this.#acknowledged]);
      this.#sent += 1;
    }
  }

  #connect() {
    const socket = openSocket("/v1/stream");
    this.#socket = socket;
    this.#problem = null;
    socket.onopen = () => {
      const again = { type: "resume", stream: this.#token, events: this.#events };
      socket.send(JSON.stringify(this.#token ? again : { type: "start", ...this.start }));
    };
    socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    socket.onclose = (closed) => this.#closed(closed);
  }

  #take(event) {
    switch (event.type) {
      case "ready":
        this.#token = event.stream;
        this.#acknowledge(event.frames);
        this.#sent = event.frames;
        this.#ready = true;
        this.#pause = FIRST_PAUSE_MS;
        this.handlers.state("live");
        this.#flush();
        return;
      case "ack":
        this.#acknowledge(event.frames);
        if (event.gain_db !== undefined) this.handlers.gain?.(event.gain_db);
        return;
      case "error":
        this.#problem = event;
        return;
      case "partial":
        this.handlers.event(event);
        return;
    }
    if (event.event > this.#events) {
      this.#events = event.event;
      this.handlers.event(event);
    }
    this.#over ||= event.type === "end";
    if (this.#socket.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify({ type: "ack", events: this.#events }));
    }
  }

  #closed({ code, reason }) {
    this.#ready = false;
    if (this.#over) {
      this.#wake();
      return;
    }
    const problem = this.#problem;
    if (problem?.code === "no_stream") {
      this.#end();
      this.handlers.lost();
    } else if (code === NORMAL || code === POLICY) {
      this.#end();
      this.handlers.failed(problem?.message ?? (reason || "the server ended the stream"));
    } else {
      const why = problem?.code === "server_full" ? "the server is full" : "the connection was lost";
      this.handlers.state("away", why);
      this.#timer = setTimeout(() => this.#connect(), this.#pause);
      this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE_MS);
    }
  }

  #end() {
    this.#over = true;
    this.#wake();
  }

  #acknowledge(frames) {
    this.#frames.splice(0, frames - this.#acknowledged);
    this.#acknowledged = frames;
    this.#wake();
  }

  #wake() {
    for (const resolve of this.#room.splice(0)) resolve();
  }
}
