/**
 * Live speech recognition on a Pianissimo server: audio in, events out.
 *
 * A broken connection is opened again, and the stream continues behind the last frame and event
 * that both sides have. It needs the global WebSocket of browsers and of Node 22 (Node 20 has it
 * with --experimental-websocket).
 */

import { Counts, KeptFrames } from "./frames.js";

/** A word with times in seconds since the first sample. */
export interface Word {
  text: string;
  start: number;
  end: number;
  confidence: number | null;
  speaker?: string;
  speaker_confidence?: number | null;
}

/** What a stream tells; docs/server-api.md describes the types. */
export interface StreamEvent {
  type: "partial" | "final" | "endpoint" | "revision";
  text: string;
  /** With `itn`, of a final: its text as it was spoken. */
  lexical?: string;
  words: Word[];
  /** In seconds since the first sample. */
  start: number;
  end: number;
  /** Why a final is one. */
  reason?: "endpoint" | "length" | "finalize" | "finish";
  /** The number of a final, and of the final that a revision belongs to. */
  event?: number;
}

/** When a pause ends an utterance, in seconds. */
export interface EndpointRules {
  trailing_silence?: number;
  minimum_speech?: number;
  maximum_utterance?: number;
}

/** The options of a stream, as the server knows them; what is left out is its default. */
export interface StartFields {
  model?: string;
  language?: string;
  latency_ms?: number;
  /** Of the audio that is sent; 16000 if left out. */
  sample_rate?: number;
  /** Arrays are converted to the first two; the others are sent as bytes. */
  encoding?: "pcm_s16le" | "pcm_f32le" | "mulaw" | "alaw";
  channels?: number;
  /** null: no pause ends an utterance. */
  endpoint?: EndpointRules | null;
  boost?: (string | { text: string; weight?: number })[];
  diarize?: boolean;
  second_pass?: boolean;
  polish?: boolean;
  /** Finals write numbers, dates and money as people do. */
  itn?: boolean;
  user?: string;
}

export interface ConnectOptions extends StartFields {
  /** An API key, if the server requires one. */
  key?: string;
  /** For how long a broken connection is tried again; 120 s if left out. */
  retrySeconds?: number;
  /** At most so much audio that the server has received is kept; 600 s if left out. */
  keepSeconds?: number;
}

/** Why a stream ended early. `code` is that of the server, if it gave one. */
export class StreamError extends Error {
  constructor(
    message: string,
    readonly kind: "unreachable" | "refused" | "lost" | "closed" | "audio",
    readonly code?: string,
  ) {
    super(message);
    this.name = "StreamError";
  }
}

/** The connection has failed, and a later one may succeed. */
class Later extends Error {}

interface Message extends Partial<Counts> {
  type: string;
  event?: number;
  stream?: string;
  model?: string;
  latency_ms?: number | null;
  code?: string;
  message?: string;
  text?: string;
  lexical?: string;
  words?: Word[];
  start?: number;
  end?: number;
  reason?: StreamEvent["reason"];
}

const PROTOCOL = "pianissimo";
const SAMPLE_BYTES = { pcm_s16le: 2, pcm_f32le: 4, mulaw: 1, alaw: 1 };
/** Error codes of a server that cannot continue the stream. */
const LOST = ["no_stream", "frames_lost", "state_invalid"];
/** Error codes of a server that may serve the stream later. */
const LATER = [
  ...["server_full", "key_limit", "draining", "restarting", "engine_failed", "engine_full"],
  ...["store_down", "taken_over", "idle"],
];
/** After other close codes the next connection may succeed. */
const REFUSING_CLOSES = [1000, 1008];
/** Pauses between connections: doubled after each one that fails. */
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5000;
/** How long the server may take for its first answer. */
const OPEN_MS = 30_000;
/** A connection of this length is no failed attempt, even if it carried nothing. */
const STABLE_MS = 5000;
const KEEPALIVE_MS = 5000;
/** Bytes that may wait in the socket before more are given to it. */
const MOST_BUFFERED = 1 << 20;
/** Most finals and endpoints that wait to be read; with more, no audio is sent. */
const MOST_UNREAD = 500;

/**
 * A live stream on a server; `connect` opens it.
 *
 * Iterating gives its events: the newest partial, and each final and endpoint exactly once, across
 * broken connections. Iteration ends after `finish`, once all text has arrived. Failures reach the
 * caller of `send`, `finalize`, `finish` and the reader of events as `StreamError`.
 */
export class PianissimoStream implements AsyncIterable<StreamEvent> {
  /** How many connections the stream took so far. */
  connections = 0;
  /** How often the server lost the stream, and its last audio was sent to a new one. */
  restarts = 0;
  /** The name of the model, and the latency mode, that the server chose. */
  model = "";
  latencyMs: number | null = null;

  private readonly frames: KeptFrames;
  private readonly sampleBytes: number;
  private readonly blockBytes: number;
  private readonly start: Record<string, unknown>;
  private rest = new Uint8Array(0);
  private socket: WebSocket | undefined;
  private token: string | undefined;
  private seen = 0;
  private progress = 0;
  private readyAt: number | undefined;
  private complete = false;
  private events: StreamEvent[] = [];
  private finished = false;
  private ended = false;
  private failure: Error | undefined;
  private changed = new Set<() => void>();

  private constructor(
    private readonly url: string,
    private readonly options: ConnectOptions,
  ) {
    const { key: _key, retrySeconds: _retry, keepSeconds, ...start } = options;
    const encoding = options.encoding ?? "pcm_s16le";
    const rate = options.sample_rate ?? 16_000;
    this.start = { ...start, encoding, sample_rate: rate };
    this.sampleBytes = SAMPLE_BYTES[encoding] * (options.channels ?? 1);
    this.blockBytes = this.sampleBytes * rate;
    this.frames = new KeptFrames(this.sampleBytes * rate, keepSeconds ?? 600);
  }

  /** Open a stream; fails with a `StreamError` if the server is unreachable or refuses it. */
  static async connect(url: string, options: ConnectOptions = {}): Promise<PianissimoStream> {
    const address = url.replace(/^http/, "ws").replace(/\/+$/, "").replace(/\/v1\/stream$/, "");
    const stream = new PianissimoStream(`${address}/v1/stream`, options);
    void stream.run();
    while (stream.connections === 0 && !stream.ended) await stream.change();
    if (stream.failure) throw stream.failure;
    return stream;
  }

  /** Send audio: floats between -1 and 1, 16-bit samples, or bytes in the encoding of the stream. */
  async send(samples: Float32Array | Int16Array | Uint8Array): Promise<void> {
    const added = this.encoded(samples);
    this.checkOpen();
    const data = new Uint8Array(this.rest.length + added.length);
    data.set(this.rest);
    data.set(added, this.rest.length);
    const whole = data.length - (data.length % this.sampleBytes);
    this.rest = data.slice(whole);
    for (let start = 0; start < whole; start += this.blockBytes) {
      await this.room();
      this.frames.addAudio(data.slice(start, Math.min(start + this.blockBytes, whole)));
      this.flush();
    }
  }

  /** Request the final text of all audio so far; the stream continues. */
  async finalize(): Promise<void> {
    await this.command("finalize");
  }

  /** End the audio: iteration ends when all of its text has arrived. */
  async finish(): Promise<void> {
    await this.command("finish");
    this.finished = true;
  }

  /** Close the connection at once; the server drops the stream when its time to resume is over. */
  close(): void {
    this.end();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<StreamEvent> {
    for (;;) {
      const event = this.events.shift();
      if (event) {
        this.flush();
        yield event;
      } else if (this.ended) {
        if (this.failure) throw this.failure;
        return;
      } else {
        await this.change();
      }
    }
  }

  private async command(type: "finalize" | "finish"): Promise<void> {
    this.checkOpen();
    await this.room();
    this.frames.addCommand(JSON.stringify({ type }));
    this.flush();
  }

  private async room(): Promise<void> {
    while (this.frames.full && !this.ended) await this.change();
    this.checkOpen();
  }

  private checkOpen(): void {
    if (this.failure) throw this.failure;
    if (this.finished || this.ended) {
      throw new StreamError("the stream has ended; connect again for more audio", "closed");
    }
  }

  private encoded(samples: Float32Array | Int16Array | Uint8Array): Uint8Array {
    if (samples instanceof Uint8Array) return samples;
    const encoding = this.start.encoding;
    if (encoding !== "pcm_s16le" && encoding !== "pcm_f32le") {
      throw new StreamError(`arrays are not converted to ${encoding}; send bytes`, "audio");
    }
    const floats = samples instanceof Float32Array;
    const size = encoding === "pcm_s16le" ? 2 : 4;
    const view = new DataView(new ArrayBuffer(samples.length * size));
    samples.forEach((sample, index) => {
      if (!Number.isFinite(sample)) throw new StreamError("samples contain NaN or infinity", "audio");
      if (size === 4) view.setFloat32(4 * index, floats ? sample : sample / 32768, true);
      else {
        const value = floats ? Math.round(sample * 32768) : sample;
        view.setInt16(2 * index, Math.max(-32768, Math.min(32767, value)), true);
      }
    });
    return new Uint8Array(view.buffer);
  }

  /** Wait until anything has changed. */
  private change(): Promise<void> {
    return new Promise((resolve) => this.changed.add(resolve));
  }

  private notify(): void {
    const waiting = [...this.changed];
    this.changed.clear();
    for (const resolve of waiting) resolve();
  }

  private end(failure?: Error): void {
    if (this.ended) return;
    this.failure = failure;
    this.ended = true;
    this.socket?.close();
    this.notify();
  }

  /** Connect, and connect again whenever the connection breaks, until the stream has ended. */
  private async run(): Promise<void> {
    const limit = 1000 * (this.options.retrySeconds ?? 120);
    let pause = FIRST_PAUSE_MS;
    let deadline = Date.now() + limit;
    while (!this.ended) {
      const before = this.progress;
      this.readyAt = undefined;
      let why: string;
      try {
        if (await this.connectOnce()) return this.end();
        why = "the server closed the connection";
      } catch (error) {
        if (!(error instanceof Later)) return this.end(error as Error);
        why = error.message;
      }
      if (this.complete && this.token === undefined) return this.end();
      if (this.connections === 0) {
        const message = `${this.url} cannot be reached (${why}); check the address and the key`;
        return this.end(new StreamError(message, "unreachable"));
      }
      const now = Date.now();
      const stable = this.readyAt !== undefined && now - this.readyAt >= STABLE_MS;
      if (stable || this.progress > before) {
        pause = FIRST_PAUSE_MS;
        deadline = now + limit;
      } else if (now >= deadline) {
        const message = `${this.url} has not served the stream for ${limit / 1000} s (${why})`;
        return this.end(new StreamError(message, "unreachable"));
      }
      // Random, so that the clients of a server that restarts do not return all at once.
      const wait = Math.min((0.5 + 0.5 * Math.random()) * pause, Math.max(0, deadline - now));
      await new Promise((resolve) => setTimeout(resolve, wait));
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }

  /** One connection: true if the stream has ended; fails with `Later` if only the connection has. */
  private connectOnce(): Promise<boolean> {
    return new Promise((resolve, reject) => {
      // In the URL the token lets a proxy find the server that has the stream.
      const place = this.token ? `${this.url}?stream=${encodeURIComponent(this.token)}` : this.url;
      const key = this.options.key;
      const socket = new WebSocket(place, key ? [PROTOCOL, `pianissimo-key.${key}`] : [PROTOCOL]);
      this.socket = socket;
      let ready = false;
      const settle = (done: () => void) => {
        clearTimeout(opening);
        clearInterval(keepalive);
        socket.onmessage = socket.onclose = socket.onopen = socket.onerror = null;
        if (this.socket === socket) this.socket = undefined;
        socket.close();
        done();
      };
      const opening = setTimeout(() => settle(() => reject(new Later("no answer"))), OPEN_MS);
      const keepalive = setInterval(() => {
        if (ready) socket.send(JSON.stringify({ type: "keepalive" }));
      }, KEEPALIVE_MS);
      let opened = false;
      socket.onopen = () => {
        opened = true;
        socket.send(JSON.stringify(this.first()));
      };
      // Node 20 reports a refused handshake as an error without a close event.
      socket.onerror = () => {
        if (!opened) settle(() => reject(new Later("no connection")));
      };
      socket.onmessage = ({ data }) => {
        try {
          const message = JSON.parse(data as string) as Message;
          if (!ready) {
            this.open(message);
            clearTimeout(opening);
            ready = true;
            this.flush();
          } else if (this.receive(message, socket)) {
            settle(() => resolve(true));
          }
        } catch (error) {
          settle(() => reject(error));
        }
      };
      socket.onclose = ({ code, reason }) => {
        const why = reason || `close code ${code}`;
        const refused = REFUSING_CLOSES.includes(code) && !this.ended;
        const error = refused
          ? new StreamError(`the server refuses the stream: ${why}`, "refused")
          : new Later(why);
        settle(() => reject(error));
      };
    });
  }

  private first(): Record<string, unknown> {
    if (this.token === undefined) return { type: "start", ...this.start };
    const counts = { events: this.seen, frames: this.frames.droppedCount };
    return { type: "resume", stream: this.token, ...counts };
  }

  private open(ready: Message): void {
    if (ready.type !== "ready") {
      if (this.token !== undefined && LOST.includes(ready.code ?? "")) this.startAgain(ready);
      this.fail(ready);
    }
    this.token = ready.stream;
    this.model = ready.model ?? "";
    this.latencyMs = ready.latency_ms ?? null;
    this.connections += 1;
    this.readyAt = Date.now();
    this.frames.resume(ready as Counts);
    this.notify();
  }

  /** The server lost the stream: the next one begins where no final text covers the audio. */
  private startAgain(error: Message): void {
    this.token = undefined;
    this.seen = 0;
    this.restarts += 1;
    if (!this.frames.startAgain()) {
      const message =
        `the server lost the stream (${error.message}), and the client no longer has all audio ` +
        "without a final text; raise keepSeconds, or finalize more often";
      throw new StreamError(message, "lost", error.code);
    }
  }

  private fail(error: Message): never {
    const message = error.message ?? JSON.stringify(error);
    if ([...LATER, ...LOST].includes(error.code ?? "") && this.connections > 0) {
      throw new Later(message);
    }
    throw new StreamError(`the server refuses the stream: ${message}`, "refused", error.code);
  }

  /** Send the frames that the server does not have; none while events wait to be read. */
  private flush(): void {
    const socket = this.socket;
    if (!socket || socket.readyState !== WebSocket.OPEN || this.readyAt === undefined) return;
    while (this.events.length < MOST_UNREAD) {
      if (socket.bufferedAmount > MOST_BUFFERED) {
        setTimeout(() => this.flush(), 50);
        return;
      }
      const data = this.frames.nextUnsent();
      if (data === undefined) return;
      socket.send(data);
    }
  }

  /** Read a message; true if the stream has ended. */
  private receive(message: Message, socket: WebSocket): boolean {
    switch (message.type) {
      case "ack":
        this.progress += Number(message.frames! > this.frames.acknowledgedCount);
        this.frames.acknowledge(message as Counts);
        this.notify();
        return false;
      case "error":
        return this.fail(message);
      case "partial":
      case "revision":
        this.deliver(message);
        return false;
    }
    const number = message.event ?? 0;
    if (number > this.seen) {
      this.seen = number;
      this.progress += 1;
      if (message.type === "final") {
        this.frames.cover(message as Counts);
        this.complete = message.reason === "finish";
      }
      if (message.type !== "end") this.deliver(message);
    }
    socket.send(JSON.stringify({ type: "ack", events: this.seen }));
    return message.type === "end";
  }

  private deliver(message: Message): void {
    const offset = this.frames.start;
    const end = (message.end ?? 0) + offset;
    const words = (message.words ?? []).map((word) => ({
      ...word,
      start: word.start + offset,
      end: word.end + offset,
    }));
    const event: StreamEvent = {
      type: message.type as StreamEvent["type"],
      text: message.text ?? "",
      words,
      start: message.start === undefined ? end : message.start + offset,
      end,
      ...(message.reason && { reason: message.reason }),
      ...(message.lexical !== undefined && { lexical: message.lexical }),
      ...(message.event !== undefined && { event: message.event }),
    };
    if (this.events.at(-1)?.type === "partial") this.events.pop(); // the newer event holds it all
    this.events.push(event);
    this.notify();
  }
}

/** Open a live stream on a server: "ws://HOST:PORT", or wss, http or https. */
export const connect = PianissimoStream.connect;
