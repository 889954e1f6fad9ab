// A transcript on the page: paragraphs of words that can be heard, corrected and marked.

import { align, plain } from "/page/align.js";
import { speakerName, timed } from "/page/subtitles.js";

const SURE = 0.8;
const DOUBTFUL = 0.5;
const AT_BOTTOM_PIXELS = 48;
const COLORS = 8; // of speakers, in page.css

export class TranscriptView {
  #partial = null;
  #words = new WeakMap(); // element to word
  #active = null;
  #editing = false;
  #names = new Map(); // speaker to the name that the user gave

  /** `hear(start, end)` plays the recording from one time to another. */
  constructor(root, hear) {
    this.root = root;
    this.hear = hear;
    this.paragraphs = []; // { text, words, start, end, speaker }; some models give no words
    root.tabIndex = -1;
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Transcript. Arrow keys move between words, Enter plays one.");
    root.addEventListener("click", (event) => this.#clicked(event));
    root.addEventListener("keydown", (event) => this.#pressed(event));
    root.addEventListener("focusout", (event) => this.#left(event));
  }

  get empty() {
    return this.paragraphs.length === 0;
  }

  /** The paragraphs that have text, as segments of a transcript. */
  get segments() {
    return this.paragraphs
      .filter(({ text }) => text !== "")
      .map(({ text, words, start, end, speaker }) => {
        const segment = { text, start, end, words };
        return speaker === null ? segment : { ...segment, speaker: this.#given(speaker) };
      });
  }

  get words() {
    return this.paragraphs.flatMap(timed);
  }

  /** What people read of a speaker; "" for none. */
  nameOf(speaker) {
    return speaker === null ? "" : speakerName(this.#given(speaker));
  }

  /** The name that the user gave, or the label of the server. */
  #given(speaker) {
    return this.#names.get(speaker) ?? speaker;
  }

  clear() {
    this.paragraphs = [];
    this.#names.clear();
    this.#partial = null;
    this.#active = null;
    this.root.replaceChildren();
    this.root.tabIndex = -1;
  }

  /** What may still grow; "" for nothing. */
  setPartial({ text, start, joins }) {
    const follow = this.#atBottom();
    if (text === "") {
      this.#partial?.remove();
      this.#partial = null;
      return;
    }
    if (this.#partial === null) {
      const time = document.createElement("span");
      time.textContent = joins ? "" : clock(start);
      this.#partial = this.#block(time);
      this.#partial.classList.add("partial");
    }
    this.#partial.querySelector("p").textContent = text;
    if (follow) this.#scroll();
  }

  /** A final paragraph; with `joins` it continues the previous one. */
  add({ text, words, start, end, joins, speaker = null }) {
    const follow = this.#atBottom();
    this.setPartial({ text: "" });
    if (text === "") return;
    const last = this.paragraphs.at(-1);
    if (joins && last && last.speaker === speaker) {
      const known = last.words.length + words.length > 0;
      last.words = known ? [...timed(last), ...timed({ text, words, start, end })] : [];
      last.text += ` ${text}`;
      last.end = end;
      this.#fill(last);
    } else {
      const element = this.#block(timeButton(start), speaker);
      const paragraph = { text, words, start, end, speaker, element };
      this.paragraphs.push(paragraph);
      this.#fill(paragraph);
    }
    this.root.tabIndex = 0;
    if (follow) this.#scroll();
  }

  /** Marks the words for which `differs(index)` holds. */
  mark(differs) {
    [...this.root.querySelectorAll(".word")].forEach((element, i) => {
      element.classList.toggle("differs", differs(i));
    });
  }

  /** Shows which word is being played at this time, null for none; `scroll` keeps it in sight. */
  follow(seconds, scroll = false) {
    for (const element of this.root.querySelectorAll(".word")) {
      const { start, end } = this.#words.get(element);
      const playing = seconds !== null && start <= seconds && seconds < end;
      if (playing && scroll && !element.classList.contains("playing")) {
        element.scrollIntoView({ block: "center" });
      }
      element.classList.toggle("playing", playing);
    }
  }

  /** Marks where these words stand, the last one as far as it is typed; the first word of each. */
  find(text) {
    const wanted = text.split(/\s+/).map(plain).filter(Boolean);
    const elements = [...this.root.querySelectorAll(".word")];
    const texts = elements.map((element) => plain(element.textContent));
    for (const element of elements) element.classList.remove("found", "current");
    const places = [];
    for (let i = 0; wanted.length && i + wanted.length <= texts.length; i += 1) {
      const last = wanted.length - 1;
      const same = wanted.every((word, k) => (k < last ? texts[i + k] === word : texts[i + k].startsWith(word)));
      if (!same) continue;
      places.push(elements[i]);
      for (let k = 0; k <= last; k += 1) elements[i + k].classList.add("found");
    }
    return places;
  }

  /** Brings a place that `find` gave into sight. */
  reveal(element) {
    for (const other of this.root.querySelectorAll(".current")) other.classList.remove("current");
    element.classList.add("current");
    element.scrollIntoView({ block: "center" });
  }

  get editing() {
    return this.#editing;
  }

  /** While it is edited each paragraph is a field of its own. */
  edit(on) {
    if (!on) for (const paragraph of this.paragraphs) this.#reconcile(paragraph);
    this.#editing = on;
    this.root.classList.toggle("editing", on);
    for (const { element } of this.paragraphs) this.#makeEditable(element, on);
  }

  #makeEditable(element, on) {
    const field = element.querySelector("p");
    if (!on) {
      for (const name of ["contenteditable", "role", "aria-label"]) field.removeAttribute(name);
      return;
    }
    field.setAttribute("contenteditable", "true");
    field.setAttribute("role", "textbox");
    field.setAttribute("aria-label", "Paragraph");
  }

  #block(time, speaker = null) {
    const element = document.createElement("div");
    element.className = "paragraph";
    time.classList.add("time");
    element.append(time);
    if (speaker !== null) element.append(this.#speakerButton(speaker));
    element.append(document.createElement("p"));
    this.root.append(element);
    return element;
  }

  #speakerButton(speaker) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = `speaker speaker-${this.#colorOf(speaker)}`;
    button.dataset.speaker = speaker;
    this.#label(button);
    return button;
  }

  #label(button) {
    const name = this.nameOf(button.dataset.speaker);
    button.textContent = name;
    button.setAttribute("aria-label", `${name}: rename this speaker`);
  }

  /** Numbered speakers have the color of their number, others one by their first appearance. */
  #colorOf(speaker) {
    if (/^\d+$/.test(speaker)) return Number(speaker) % COLORS;
    const others = this.paragraphs.map((each) => each.speaker).filter((each) => each !== null);
    const known = [...new Set([...others, speaker])];
    return known.indexOf(speaker) % COLORS;
  }

  #rename(speaker) {
    const name = window.prompt("Name of this speaker", this.nameOf(speaker))?.trim();
    if (!name) return;
    this.#names.set(speaker, name);
    for (const button of this.root.querySelectorAll(".speaker")) this.#label(button);
  }

  #fill(paragraph) {
    const field = paragraph.element.querySelector("p");
    field.replaceChildren();
    let at = 0;
    for (const word of timed(paragraph)) {
      const found = paragraph.text.indexOf(word.text, at);
      if (found < 0) continue;
      field.append(paragraph.text.slice(at, found), this.#wordElement(word));
      at = found + word.text.length;
    }
    field.append(paragraph.text.slice(at));
    if (this.#editing) this.#makeEditable(paragraph.element, true);
  }

  #wordElement(word) {
    const element = document.createElement("span");
    element.className = "word";
    element.textContent = word.text;
    if (word.confidence !== null && word.confidence < SURE) {
      element.classList.add(word.confidence < DOUBTFUL ? "doubtful" : "unsure");
      element.title = `${Math.round(100 * word.confidence)} % sure`;
    }
    this.#words.set(element, word);
    return element;
  }

  // -- hearing -----------------------------------------------------------------------------------

  #clicked({ target }) {
    if (target.classList.contains("speaker")) {
      this.#rename(target.dataset.speaker);
      return;
    }
    if (this.#editing) return;
    if (target.classList.contains("time")) {
      const found = this.paragraphs.find(({ element }) => element === target.parentElement);
      if (found) this.hear(found.start, found.end);
    } else if (target.classList.contains("word")) {
      this.#activate(target);
      this.#play(target);
    }
  }

  #pressed(event) {
    if (this.#editing || event.target !== this.root) return;
    const elements = [...this.root.querySelectorAll(".word")];
    if (elements.length === 0) return;
    const at = elements.indexOf(this.#active);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      const next = at < 0 ? 0 : Math.max(0, Math.min(elements.length - 1, at + step));
      this.#activate(elements[next]);
    } else if (event.key === "Enter" && at >= 0) {
      this.#play(elements[at]);
    } else {
      return;
    }
    event.preventDefault();
  }

  #activate(element) {
    this.#active?.classList.remove("active");
    this.#active = element;
    element?.classList.add("active");
    element?.scrollIntoView({ block: "nearest" });
  }

  #play(element) {
    const { start, end } = this.#words.get(element);
    this.hear(start, end);
  }

  #left({ target }) {
    if (target === this.root) this.#activate(null);
    const changed = this.paragraphs.find(({ element }) => element.contains(target));
    if (this.#editing && changed) this.#reconcile(changed);
  }

  // -- correcting --------------------------------------------------------------------------------

  /** Words that were left as they are keep their times, new ones share the time between them. */
  #reconcile(paragraph) {
    const text = paragraph.element.querySelector("p").textContent.replace(/\s+/g, " ").trim();
    if (text === paragraph.text) return;
    const typed = text === "" ? [] : text.split(" ");
    const before = timed(paragraph);
    const kept = new Map(align(typed, before.map((word) => word.text)));
    const words = typed.map((word, i) =>
      kept.has(i) ? before[kept.get(i)] : { text: word, confidence: null },
    );
    for (let i = 0; i < words.length; i += 1) {
      if (kept.has(i)) continue;
      let next = i;
      while (next < words.length && !kept.has(next)) next += 1;
      const from = words[i - 1]?.end ?? paragraph.start;
      const to = Math.max(from, words[next]?.start ?? paragraph.end);
      for (let k = i; k < next; k += 1) {
        const share = (to - from) / (next - i);
        words[k] = { ...words[k], start: from + share * (k - i), end: from + share * (k - i + 1) };
        kept.set(k, null);
      }
    }
    Object.assign(paragraph, { text, words });
    this.#fill(paragraph);
  }

  #atBottom() {
    const { scrollHeight, scrollTop, clientHeight } = this.root;
    return scrollHeight - scrollTop - clientHeight < AT_BOTTOM_PIXELS;
  }

  #scroll() {
    this.root.scrollTop = this.root.scrollHeight;
  }
}

function timeButton(start) {
  const time = document.createElement("button");
  time.type = "button";
  time.textContent = clock(start);
  time.setAttribute("aria-label", `Play from ${clock(start)}`);
  return time;
}

/** A final in parts of one speaker each; what has no speaker continues the part before. */
export function bySpeaker(final) {
  const parts = [];
  for (const word of final.words) {
    const speaker = word.speaker ?? parts.at(-1)?.speaker ?? null;
    if (!parts.length || (parts.at(-1).speaker !== null && parts.at(-1).speaker !== speaker)) {
      parts.push({ words: [], speaker });
    }
    parts.at(-1).words.push(word);
    parts.at(-1).speaker = speaker;
  }
  if (parts.length < 2) return [{ ...final, speaker: parts[0]?.speaker ?? null }];
  return parts.map(({ words, speaker }, i) => ({
    text: words.map(({ text }) => text).join(" "),
    words,
    start: words[0].start,
    end: words.at(-1).end,
    joins: i === 0 && final.joins,
    speaker,
  }));
}

/** Seconds as m:ss, or h:mm:ss. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60];
  const hours = Math.floor(whole / 3600);
  if (hours) parts.unshift(hours);
  return parts.map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
}
