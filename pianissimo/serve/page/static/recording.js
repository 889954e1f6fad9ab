// Sound in the browser: kept as 16 bits, cut, measured, played, and written as WAV.

const FOLD_SECONDS = 30; // older sound becomes a Blob, which the browser may keep on disk
const WAV_HEADER_BYTES = 44;
// Models write a word when they are sure of it: it began a little before its time.
export const LEAD_SECONDS = 0.3;
const TRAIL_SECONDS = 0.1;

/** A mono recording that may still grow; times are seconds since its beginning. */
export class Recording {
  #parts = []; // { start, length, data }: an Int16Array, or a Blob of one
  #folded = 0; // parts that are Blobs
  #folding = 0; // samples behind them
  #listeners = new Set();

  constructor(rate) {
    this.rate = rate;
    this.length = 0;
    this.grewAt = performance.now();
  }

  get seconds() {
    return this.length / this.rate;
  }

  /** When the sound at this time was heard, on the clock of performance.now(). */
  clock(seconds) {
    return this.grewAt - (this.seconds - seconds) * 1000;
  }

  append(samples) {
    this.#parts.push({ start: this.length, length: samples.length, data: samples });
    this.length += samples.length;
    this.#folding += samples.length;
    this.grewAt = performance.now();
    if (this.#folding > 2 * FOLD_SECONDS * this.rate) this.#fold();
    for (const listener of this.#listeners) listener();
  }

  /** Calls `listener` whenever the recording has grown; returns how to stop that. */
  onGrowth(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #fold() {
    const old = [];
    let length = 0;
    while (length < FOLD_SECONDS * this.rate) {
      const part = this.#parts[this.#folded + old.length];
      old.push(part.data);
      length += part.length;
    }
    const start = this.#parts[this.#folded].start;
    this.#parts.splice(this.#folded, old.length, { start, length, data: new Blob(old) });
    this.#folded += 1;
    this.#folding -= length;
  }

  /** The samples from one position to another, an Int16Array. */
  async slice(from, to) {
    from = Math.max(0, Math.round(from));
    to = Math.min(this.length, Math.round(to));
    const found = new Int16Array(Math.max(0, to - from));
    let first = this.#parts.length;
    while (first > 0 && this.#parts[first - 1].start + this.#parts[first - 1].length > from) first -= 1;
    for (const part of this.#parts.slice(first)) {
      if (part.start >= to) break;
      const begin = Math.max(from, part.start);
      const end = Math.min(to, part.start + part.length);
      let data = part.data;
      if (data instanceof Blob) {
        const bytes = data.slice(2 * (begin - part.start), 2 * (end - part.start));
        data = new Int16Array(await bytes.arrayBuffer());
      } else {
        data = data.subarray(begin - part.start, end - part.start);
      }
      found.set(data, begin - from);
    }
    return found;
  }

  /** Everything as a WAV file. */
  wav() {
    return wavFile(this.#parts.map((part) => part.data), this.length, this.rate);
  }
}

/** A WAV file of 16 bits, mono, from pieces of `length` samples together. */
export function wavFile(pieces, length, rate) {
  const header = new DataView(new ArrayBuffer(WAV_HEADER_BYTES));
  const text = (at, word) => [...word].forEach((c, i) => header.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, WAV_HEADER_BYTES - 8 + 2 * length, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, 2 * length, true);
  return new File([header, ...pieces], "recording.wav", { type: "audio/wav" });
}

/** Floats in [-1, 1] as 16 bits. */
export function toInt16(samples, scale = 1) {
  return Int16Array.from(samples, (x) =>
    Math.max(-32768, Math.min(32767, Math.round(x * scale * 32768))),
  );
}

/** A file as mono floats; throws when the browser knows no decoder for it. */
export async function decode(file, rate = 16000) {
  const context = new OfflineAudioContext(1, 1, rate);
  let buffer;
  try {
    buffer = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error("this browser cannot decode that file; the File tab can, on the server");
  }
  const mono = new Float32Array(buffer.length);
  for (let c = 0; c < buffer.numberOfChannels; c += 1) {
    buffer.getChannelData(c).forEach((x, i) => {
      mono[i] += x / buffer.numberOfChannels;
    });
  }
  return mono;
}

let player = null;
let playing = null;

/** Plays samples, instead of what was played before; resolves when they have ended. */
export function play(samples, rate) {
  playing?.stop();
  if (samples.length === 0) return Promise.resolve();
  player ??= new AudioContext();
  player.resume();
  const buffer = player.createBuffer(1, samples.length, rate);
  buffer.getChannelData(0).set(Float32Array.from(samples, (x) => x / 32768));
  playing = player.createBufferSource();
  playing.buffer = buffer;
  playing.connect(player.destination);
  playing.start();
  return new Promise((resolve) => {
    playing.onended = resolve;
  });
}

/** Plays what was said between two times of a transcript. */
export async function playPart(recording, start, end) {
  const { rate } = recording;
  const samples = await recording.slice((start - LEAD_SECONDS) * rate, (end + TRAIL_SECONDS) * rate);
  await play(samples, rate);
}
