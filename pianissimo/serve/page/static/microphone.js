// The microphone: as it is, or with the echo of the loudspeaker canceled by the browser.

const RAW = { autoGainControl: false, echoCancellation: false, noiseSuppression: false };
/** For conversations: the voice of the answer must not count as speech of the user. */
export const ECHO_CANCELED = { ...RAW, echoCancellation: true, noiseSuppression: true };

export class Microphone {
  #context;
  #stream;
  #node;

  /**
   * Opens it; `onBlock({pcm, power, peak})` is called for each block, `onEnd` if it is unplugged.
   * `processing` is what the browser does to the audio, nothing by default; `rate` in Hz is that of
   * the sound card by default.
   */
  static async open(onBlock, onEnd, { processing = RAW, rate } = {}) {
    if (!navigator.mediaDevices) {
      throw new Error(
        "browsers allow the microphone only on https or localhost; open this page there",
      );
    }
    const microphone = new Microphone();
    try {
      microphone.#stream = await navigator.mediaDevices.getUserMedia({ audio: processing });
    } catch (error) {
      const refused = error.name === "NotAllowedError";
      const hint = "microphone access was denied; allow it in the address bar";
      throw new Error(refused ? hint : "no microphone was found");
    }
    microphone.#stream.getAudioTracks()[0].onended = onEnd;
    try {
      await microphone.#start(onBlock, rate);
    } catch (error) {
      microphone.#release();
      throw error;
    }
    return microphone;
  }

  async #start(onBlock, rate) {
    this.#context = new AudioContext(rate ? { sampleRate: rate } : {});
    await this.#context.audioWorklet.addModule("/page/capture.js");
    this.#node = new AudioWorkletNode(this.#context, "capture");
    this.#node.port.onmessage = ({ data }) => onBlock(data);
    this.#context.createMediaStreamSource(this.#stream).connect(this.#node);
    this.#node.connect(this.#context.destination); // silent, but only so it is asked to run
    await this.#context.resume();
  }

  get rate() {
    return this.#context.sampleRate;
  }

  /** Ends it; what was heard until now has been given to `onBlock` when this resolves. */
  async close() {
    const { port } = this.#node;
    const onBlock = port.onmessage;
    await new Promise((resolve) => {
      port.onmessage = (message) => (message.data === null ? resolve() : onBlock(message));
      port.postMessage("flush");
    });
    this.#release();
  }

  #release() {
    for (const track of this.#stream.getTracks()) track.stop();
    this.#context?.close();
  }
}

/** 10 log10 of a mean power, in dB of full scale, not below `floor`. */
export function decibels(power, floor = -80) {
  return Math.max(floor, 10 * Math.log10(power + 1e-12));
}
