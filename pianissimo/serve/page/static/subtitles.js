// A transcript as files: txt, srt, vtt, json. Cues follow the rules of `pianissimo transcribe`.

const LINE_CHARACTERS = 42;
const LINES = 2;
const LONGEST_SECONDS = 7;
const PAUSE_SECONDS = 1;

export const KINDS = {
  txt: ["text/plain", toText],
  srt: ["application/x-subrip", toSrt],
  vtt: ["text/vtt", toVtt],
  json: ["application/json", toJson],
};

/** One paragraph per line, behind its speaker if it has one. */
export function toText({ segments }) {
  const named = ({ text, speaker }) => speaker ? `${speakerName(speaker)}: ${text}\n` : `${text}\n`;
  return segments.map(named).join("");
}

/** "Speaker 1" for the label "0", a name as it is. */
export function speakerName(label) {
  return /^\d+$/.test(label) ? `Speaker ${Number(label) + 1}` : label;
}

function toSrt(transcript) {
  let before = null;
  const blocks = cues(transcript).map(({ start, end, lines, speaker }, i) => {
    const named = speaker && speaker !== before ? `${speakerName(speaker)}:\n` : "";
    before = speaker ?? before;
    const text = (named + lines.join("\n")).replaceAll("-->", "->");
    return `${i + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${text}\n`;
  });
  return blocks.join("\n");
}

function toVtt(transcript) {
  const escaped = (raw) =>
    raw.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const blocks = cues(transcript).map(({ start, end, lines, speaker }) => {
    const plain = escaped(lines.join("\n"));
    const text = speaker ? `<v ${escaped(speakerName(speaker))}>${plain}</v>` : plain;
    return `${stamp(start, ".")} --> ${stamp(end, ".")}\n${text}\n`;
  });
  return ["WEBVTT\n", ...blocks].join("\n");
}

/** What `Transcript.from_json` reads. */
function toJson({ segments, ...rest }) {
  const numbered = segments.map((segment, id) => ({ id, confidence: null, ...segment }));
  const text = segments.map((segment) => segment.text).join(" ");
  return `${JSON.stringify({ text, language: null, ...rest, segments: numbered }, null, 2)}\n`;
}

function cues({ segments }) {
  const found = [];
  let before = 0;
  for (const segment of segments) {
    const words = timed(segment);
    for (let begin = 0; begin < words.length; ) {
      const end = cueEnd(words, begin);
      const start = Math.max(Math.round(words[begin].start * 1000), before);
      const last = Math.min(Math.round(words[end - 1].end * 1000), start + LONGEST_SECONDS * 1000);
      before = Math.max(last, start + 1);
      const texts = words.slice(begin, end).map((word) => word.text);
      found.push({ start, end: before, lines: wrap(texts), speaker: segment.speaker ?? null });
      begin = end;
    }
  }
  return found;
}

/** The words of a segment; of one that has times only as a whole by their share of its characters. */
export function timed({ text, words, start, end }) {
  if (words.length) return words;
  const texts = text.split(/\s+/).filter(Boolean);
  const total = texts.join("").length;
  let done = 0;
  const time = () => start + ((end - start) * done) / total;
  return texts.map((word) => {
    const begun = time();
    done += word.length;
    return { text: word, start: begun, end: time(), confidence: null };
  });
}

/** The index behind the last word of the cue that begins at `begin`. */
function cueEnd(words, begin) {
  for (let i = begin + 1; i < words.length; i += 1) {
    const texts = words.slice(begin, i + 1).map((word) => word.text);
    const pause = words[i].start - words[i - 1].end > PAUSE_SECONDS;
    const sentence = /[.!?。！？]$/.test(words[i - 1].text);
    const long = words[i].end - words[begin].start > LONGEST_SECONDS;
    if (pause || sentence || long || wrap(texts).length > LINES) return i;
  }
  return words.length;
}

function wrap(texts) {
  const lines = [];
  for (const text of texts) {
    const joined = lines.length ? `${lines.at(-1)} ${text}` : text;
    if (lines.length && joined.length <= LINE_CHARACTERS) lines[lines.length - 1] = joined;
    else lines.push(text);
  }
  return lines;
}

function stamp(milliseconds, separator) {
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  const clock = [milliseconds / 3_600_000, (milliseconds / 60_000) % 60, (milliseconds / 1000) % 60];
  return `${clock.map(two).join(":")}${separator}${String(milliseconds % 1000).padStart(3, "0")}`;
}
