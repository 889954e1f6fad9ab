// Runs on the audio thread: floats of the microphone to 16 bits, in blocks, with their level.

const BLOCK_SECONDS = 0.04;
const FULL_SCALE = 32768;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate * BLOCK_SECONDS));
    this.clear();
    this.port.onmessage = () => {
      this.post();
      this.port.postMessage(null);
    };
  }

  clear() {
    this.filled = 0;
    this.energy = 0;
    this.peak = 0;
  }

  post() {
    if (this.filled === 0) return;
    const pcm = this.block.slice(0, this.filled);
    const level = { power: this.energy / this.filled, peak: this.peak };
    this.port.postMessage({ pcm, ...level }, [pcm.buffer]);
    this.clear();
  }

  process([channels]) {
    if (channels.length === 0) return true;
    for (let i = 0; i < channels[0].length; i += 1) {
      let sample = 0;
      for (const channel of channels) sample += channel[i];
      sample /= channels.length;
      this.energy += sample * sample;
      this.peak = Math.max(this.peak, Math.abs(sample));
      const value = Math.round(sample * FULL_SCALE);
      this.block[this.filled] = Math.max(-FULL_SCALE, Math.min(FULL_SCALE - 1, value));
      this.filled += 1;
      if (this.filled === this.block.length) this.post();
    }
    return true;
  }
}

registerProcessor("capture", Capture);
