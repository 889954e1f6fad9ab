/**
 * The frames of a stream that may have to be sent again.
 *
 * A frame is a message with audio or a command. Both sides count frames from 1. The server says how
 * many it has received, how many its final texts answer, and how many are in the state it stored.
 */

/** A message with audio or a command, and where it ends in the audio, in seconds. */
interface Frame {
  data: Uint8Array<ArrayBuffer> | string;
  end: number;
}

/** The counts in a message of the server. */
export interface Counts {
  frames: number;
  saved?: number;
}

/** Frames that the server has not acknowledged; with more, `send` waits. */
const MOST_UNACKNOWLEDGED = 600;
/** Audio that waits for a connection is joined to frames of this length, in seconds. */
const SHORTEST_SECONDS = 0.1;

/** Frames in order, from the first that the server may need again. */
export class KeptFrames {
  /** Where the stream that the server has begins in the audio, in seconds. */
  start = 0;
  private frames: Frame[] = [];
  private dropped = 0;
  private sent = 0;
  private acknowledged = 0;
  private covered = 0;
  private saved: number | undefined;
  private keptFrom = 0;
  private end = 0;

  /** At most `keepSeconds` of audio that the server has received are kept. */
  constructor(
    private readonly bytesPerSecond: number,
    private readonly keepSeconds: number,
  ) {}

  get full(): boolean {
    return this.count - this.acknowledged >= MOST_UNACKNOWLEDGED;
  }

  /** Frames that were dropped; a resumed stream must have them. */
  get droppedCount(): number {
    return this.dropped;
  }

  /** The number of frames that the server has acknowledged. */
  get acknowledgedCount(): number {
    return this.acknowledged;
  }

  private get count(): number {
    return this.dropped + this.frames.length;
  }

  addAudio(data: Uint8Array<ArrayBuffer>): void {
    this.end += data.length / this.bytesPerSecond;
    const last = this.count > this.sent ? this.frames.at(-1) : undefined;
    const longest = SHORTEST_SECONDS * this.bytesPerSecond;
    if (last && typeof last.data !== "string" && last.data.length + data.length <= longest) {
      const joined = new Uint8Array(last.data.length + data.length);
      joined.set(last.data);
      joined.set(data, last.data.length);
      this.frames[this.frames.length - 1] = { data: joined, end: this.end };
    } else {
      this.frames.push({ data, end: this.end });
    }
  }

  addCommand(command: string): void {
    this.frames.push({ data: command, end: this.end });
  }

  /** The next frame to send, which counts as sent from now on. */
  nextUnsent(): Uint8Array<ArrayBuffer> | string | undefined {
    const frame = this.frames[this.sent - this.dropped];
    if (frame) this.sent += 1;
    return frame?.data;
  }

  /** A connection is ready; the message says how many frames its server has. */
  resume(ready: Counts): void {
    this.acknowledged = this.sent = ready.frames;
    this.drop(ready);
  }

  acknowledge(ack: Counts): void {
    this.acknowledged = Math.max(this.acknowledged, ack.frames);
    this.drop(ack);
  }

  /** A final text says how many frames it answers. */
  cover(final: Counts): void {
    this.covered = Math.max(this.covered, final.frames);
    this.drop({ ...final, saved: undefined });
  }

  /**
   * Count from the first kept frame, for another stream. False if frames that no final text
   * answers are missing.
   */
  startAgain(): boolean {
    const complete = this.dropped <= this.covered;
    this.start = this.keptFrom;
    this.dropped = this.sent = this.acknowledged = this.covered = 0;
    this.saved = undefined;
    return complete;
  }

  /** Drop what is received, answered and stored, and what is received and too old. */
  private drop(message: Counts): void {
    this.saved = message.saved ?? this.saved;
    const safe = Math.min(this.covered, this.saved ?? Infinity);
    while (this.frames.length > 0 && this.dropped < this.acknowledged) {
      if (this.dropped >= safe && this.end - this.keptFrom <= this.keepSeconds) return;
      this.keptFrom = this.frames.shift()!.end;
      this.dropped += 1;
    }
  }
}
