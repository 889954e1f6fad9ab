// A recording that grows, heard live: one stream of the server after the other, without a seam.
//
// recording ──blocks──> StreamClient ──events──> times of the recording
//
// Another latency mode or model needs another stream. The old one is finished, and a word that it
// may have heard only half is left to the new one. That hears the whole utterance once more, from
// sound that was kept, for models understand little of a sentence whose beginning they missed; what
// was told already is not told again, as words have the same times in both.

import { plain } from "/page/align.js";
import { StreamClient } from "/page/stream-client.js";

const BLOCK_SECONDS = 0.5; // of sound that has waited; new sound is sent as it comes
const MOST_WAITING = 250;
const RISK_SECONDS = 0.4; // a word that ends so shortly before a cut may have been cut
const MOST_AGAIN_SECONDS = 10; // what a new stream hears once more
const SHIFT_SECONDS = 0.35; // by as much the same word may come earlier or later in another mode

export class LiveSession {
  #client = null;
  #offset = 0; // where the present stream began, in seconds of the recording
  #position = 0; // the next sample to send
  #end = null; // where the present stream ends
  #told = 0; // words up to this time were told for good
  #last = null; // the last of them
  #utterance = 0; // where the present utterance began
  #finishing = false;
  #finishAsked = 0;
  #joins = false;
  #wake = () => {};
  #quit;
  #done;

  /**
   * Hears `recording` from its `start` in seconds on; `latency` is null for a model that hears what
   * was said between two pauses. `hints` is {language, hotwords}. Of the `handlers`, `partial` and `final` get
   * {text, words, start, end}, the `delay` in ms since the last word was spoken (of the final that
   * was `asked` for, since then; null where that means nothing), and `joins`: it continues the
   * paragraph before. A final may be empty.
   */
  constructor(
    recording,
    { model, latency, hints = {}, speakers = false, start = recording.seconds },
    handlers,
  ) {
    this.recording = recording;
    this.model = model;
    this.latency = latency;
    this.hints = hints;
    this.speakers = speakers;
    this.handlers = handlers;
    this.#quit = recording.onGrowth(() => this.#wake());
    this.done = new Promise((resolve) => {
      this.#done = resolve;
    });
    this.#told = start;
    this.#utterance = start;
    this.#open(start);
  }

  /** Go on with another model, latency mode, other hints or speakers; no word is lost. */
  switchTo({ model, latency, hints = {}, speakers = false }) {
    const now = JSON.stringify([this.model, this.latency, this.hints, this.speakers]);
    const next = JSON.stringify([model, latency, hints, speakers]);
    if (this.#finishing || next === now) return;
    Object.assign(this, { model, latency, hints, speakers });
    this.#end ??= this.recording.length;
    this.#wake();
  }

  /** The recording has ended; `done` resolves when its last text is there. */
  finish() {
    this.#finishing = true;
    this.#finishAsked = performance.now();
    this.#end ??= this.recording.length;
    this.#wake();
    return this.done;
  }

  /** Leave without the rest of the text. */
  close() {
    this.#client.close();
    this.#over();
  }

  #open(start) {
    this.#position = Math.round(start * this.recording.rate);
    this.#offset = this.#position / this.recording.rate;
    this.#end = this.#finishing ? this.recording.length : null;
    const options = { sample_rate: this.recording.rate, model: this.model, latency_ms: this.latency };
    if (this.hints.language) options.language = this.hints.language;
    if (this.hints.hotwords?.length) options.boost = this.hints.hotwords;
    if (this.speakers) options.diarize = true;
    this.#client = new StreamClient(options, {
      event: (event) => this.#take(event),
      state: (state, why) => this.handlers.state?.(state, why),
      gain: (gain) => this.handlers.gain?.(gain),
      lost: () => this.#open(this.#utterance),
      failed: (message) => {
        this.handlers.failed(message);
        this.#over();
      },
    });
    this.#pump(this.#client);
  }

  async #pump(client) {
    const most = Math.round(BLOCK_SECONDS * this.recording.rate);
    while (this.#client === client) {
      const end = this.#end ?? this.recording.length;
      if (this.#position < end && client.waiting < MOST_WAITING) {
        const next = Math.min(end, this.#position + most);
        const samples = await this.recording.slice(this.#position, next);
        if (this.#client !== client) return;
        client.send(samples);
        this.#position = next;
      } else if (this.#position < end) {
        await client.room();
      } else if (this.#end !== null) {
        client.finish();
        return;
      } else {
        await new Promise((resolve) => {
          this.#wake = resolve;
        });
      }
    }
  }

  #take(event) {
    if (event.type !== "partial" && event.type !== "final") return;
    const news = this.#news(event);
    if (event.type === "partial") {
      const last = news.words.at(-1);
      const delay = last ? this.#since(this.recording.clock(last.end)) : null;
      this.handlers.partial({ ...news, delay, joins: this.#joins });
    } else if (event.reason === "finish") {
      this.#ended(news);
    } else {
      this.#tell(news, this.#since(news.text ? this.recording.clock(news.end) : NaN));
      this.#utterance = this.#told;
    }
  }

  /** The last final of a stream: the end, or another stream follows. */
  #ended(final) {
    if (this.#finishing && this.#end === this.recording.length) {
      this.#tell(final, this.#since(this.#finishAsked));
      this.#over();
      return;
    }
    const cut = this.#end / this.recording.rate;
    const far = cut - MOST_AGAIN_SECONDS;
    if (final.text !== "" && final.words.length === 0 && this.#utterance >= far) {
      this.#open(this.#utterance); // it is unknown which words were complete, so all of it is decoded again
      return;
    }
    const last = final.words.at(-1);
    if (last !== undefined && cut - last.end < RISK_SECONDS) {
      const text = final.text.slice(0, final.text.lastIndexOf(last.text)).trimEnd();
      const words = final.words.slice(0, -1);
      final = { ...final, text, words, end: words.at(-1)?.end ?? this.#told };
    }
    this.#tell(final, null);
    this.#joins ||= final.text !== "";
    // A model without modes may give no words that could be known again: it hears what is left.
    this.#open(Math.max(this.latency === null ? this.#told : this.#utterance, far));
  }

  #tell(final, delay) {
    if (final.text !== "") [this.#told, this.#last] = [final.end, final.words.at(-1) ?? null];
    this.handlers.final({ ...final, delay, asked: this.#finishing, joins: this.#joins });
    if (final.text !== "") this.#joins = false;
  }

  #since(moment) {
    return Number.isNaN(moment) ? null : performance.now() - moment;
  }

  /** An event at the times of the recording, without the words that were told already. */
  #news({ text, words, start, end }) {
    const by = this.#offset;
    const moved = words.map((word) => ({ ...word, start: word.start + by, end: word.end + by }));
    const fresh = moved.slice(this.#knownWords(moved));
    let at = 0;
    for (const { text: word } of moved.slice(0, moved.length - fresh.length)) {
      at = text.indexOf(word, at) + word.length;
    }
    const begun = end + by > this.#told + SHIFT_SECONDS / 2; // is a word that still grows new?
    const rest = fresh.length || begun ? text.slice(at).trimStart() : "";
    return { text: rest, words: fresh, start: fresh[0]?.start ?? start + by, end: end + by };
  }

  /** How many of the words were told before. */
  #knownWords(words) {
    const same = ({ text, start }) =>
      plain(text) === plain(this.#last.text) && Math.abs(start - this.#last.start) < SHIFT_SECONDS;
    const again = this.#last ? words.findLastIndex(same) : -1;
    if (again >= 0) return again + 1;
    const first = words.findIndex(({ start, end }) => (start + end) / 2 >= this.#told);
    return first < 0 ? words.length : first;
  }

  #over() {
    this.#client = null;
    this.#quit();
    this.#wake();
    this.#done();
  }
}
