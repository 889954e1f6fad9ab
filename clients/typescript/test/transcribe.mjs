// Streams 16-bit samples of a file and prints what came as JSON:
// node --experimental-websocket transcribe.mjs URL FILE [OPTIONS AS JSON]
import { readFileSync } from "node:fs";

import { connect } from "../dist/index.js";

const [url, file, options] = process.argv.slice(2);
const bytes = readFileSync(file);
const samples = new Int16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
const { pause_ms = 0, floats = false, ...fields } = JSON.parse(options ?? "{}");
try {
  const stream = await connect(url, fields);
  const events = [];
  const reading = (async () => {
    for await (const event of stream) events.push(event);
  })();
  for (let start = 0; start < samples.length; start += 1600) {
    const block = samples.slice(start, start + 1600);
    await stream.send(floats ? Float32Array.from(block, (sample) => sample / 32768) : block);
    if (start === 30 * 1600) await stream.finalize();
    if (pause_ms) await new Promise((resolve) => setTimeout(resolve, pause_ms));
  }
  await stream.finish();
  await reading;
  const { connections, restarts, model } = stream;
  console.log(JSON.stringify({ events, connections, restarts, model }));
} catch (error) {
  console.log(JSON.stringify({ kind: error.kind, code: error.code, message: error.message }));
}
