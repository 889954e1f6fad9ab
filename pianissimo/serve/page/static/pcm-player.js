// Plays 16-bit mono samples as they arrive, one block after the other.

const LEAD_SECONDS = 0.05; // between the first audio and its start, so that no block is late

export class PcmPlayer {
  #context;
  #next = 0; // when the next block begins, on the clock of the context
  #rest = new Uint8Array(0); // half a sample
  #blocks = []; // {source, item, start, duration}
  #ended = null;

  /** `rate` is that of the samples, in Hz. */
  constructor(rate) {
    this.#context = new AudioContext({ sampleRate: rate });
  }

  /**
   * Plays bytes after what was added before. `item` names what they belong to. Returns when they
   * begin to sound, in ms of `performance.now()`; null if they are no whole sample.
   */
  add(bytes, item = null) {
    const joined = new Uint8Array(this.#rest.length + bytes.length);
    joined.set(this.#rest);
    joined.set(bytes, this.#rest.length);
    const even = joined.length - (joined.length % 2);
    this.#rest = joined.slice(even);
    if (even === 0) return null;
    const view = new DataView(joined.buffer);
    const value = (_, i) => view.getInt16(2 * i, true) / 32768;
    const samples = Float32Array.from({ length: even / 2 }, value);
    const context = this.#context;
    const unplayed = ({ start, duration }) => start + duration > context.currentTime;
    this.#blocks = this.#blocks.filter((block) => block.item === item || unplayed(block));
    const buffer = context.createBuffer(1, samples.length, context.sampleRate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    const start = Math.max(this.#next, context.currentTime + LEAD_SECONDS);
    source.start(start);
    this.#next = start + buffer.duration;
    this.#blocks.push({ source, item, start, duration: buffer.duration });
    const latency = context.outputLatency || context.baseLatency;
    return performance.now() + 1000 * (start - context.currentTime + latency);
  }

  /** Seconds of audio that were added for the latest `item`, or one that is not played yet. */
  added(item = null) {
    return this.#of(item).reduce((sum, { duration }) => sum + duration, 0);
  }

  /** How many of these seconds were played. */
  played(item = null) {
    const now = this.#context.currentTime;
    return this.#of(item).reduce(
      (sum, { start, duration }) => sum + Math.min(Math.max(now - start, 0), duration),
      0,
    );
  }

  /** What is playing now, or will be; undefined if nothing is. */
  get playing() {
    const now = this.#context.currentTime;
    return this.#blocks.find(({ start, duration }) => start + duration > now)?.item;
  }

  #of(item) {
    return this.#blocks.filter((block) => block.item === item);
  }

  /** Resolves when all was played, or the player was closed. */
  end() {
    return new Promise((resolve) => {
      this.#ended = resolve;
      const last = this.#blocks.at(-1);
      if (last === undefined || this.#context.state === "closed") resolve();
      else last.source.onended = resolve;
    });
  }

  /** Silence at once; what is added later is played. */
  stop() {
    for (const { source } of this.#blocks.splice(0)) source.stop();
    this.#next = 0;
    this.#rest = new Uint8Array(0);
  }

  close() {
    this.#ended?.();
    if (this.#context.state !== "closed") this.#context.close();
  }
}
