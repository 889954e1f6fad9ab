// The API tab: where what is, and how to begin.

import { button } from "/page/tools.js";

const ADDRESSES = [
  ["POST", "/v1/audio/transcriptions", "recordings, as OpenAI takes them"],
  ["POST", "/v1/audio/speech", "text to speech, as OpenAI"],
  ["WebSocket, POST", "/v1/speak", "text to speech, as Deepgram"],
  ["GET", "/v1/models", "what is served here"],
  ["WebSocket", "/v1/realtime", "live, as OpenAI's realtime transcription"],
  ["WebSocket, POST", "/v1/listen", "live and recordings, as Deepgram"],
  ["WebSocket", "/v1/stream", "live, our own: survives broken connections"],
  ["GET", "/metrics", "numbers for Prometheus"],
];

const SNIPPETS = [
  [
    "openai",
    (http) => `from openai import OpenAI

client = OpenAI(base_url="${http}/v1", api_key="KEY")
with open("talk.mp3", "rb") as file:
    print(client.audio.transcriptions.create(file=file, model="whisper-1").text)`,
  ],
  [
    "deepgram-sdk",
    (http, ws) => `from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment

here = DeepgramClientEnvironment(
    base="${http}",
    production="${ws}",
    agent="${ws}",
    agent_rest="${http}",
)
client = DeepgramClient(api_key="KEY", environment=here)
with open("talk.mp3", "rb") as file:
    heard = client.listen.v1.media.transcribe_file(request=file.read())
print(heard.results.channels[0].alternatives[0].transcript)`,
  ],
  [
    "WebSocket",
    (http, ws) => `import asyncio, json
from websockets.asyncio.client import connect

async def main(samples: bytes):  # 16 bit, mono, 16 kHz
    headers = {"Authorization": "Bearer KEY"}
    async with connect("${ws}/v1/stream", additional_headers=headers) as socket:
        await socket.send(json.dumps({"type": "start", "latency_ms": 160}))
        await socket.send(samples)
        await socket.send(json.dumps({"type": "finish"}))
        async for message in socket:
            event = json.loads(message)
            if event["type"] == "final":
                print(event["text"])
            if event["type"] == "end":
                break

asyncio.run(main(open("talk.raw", "rb").read()))`,
  ],
  [
    "curl",
    (http) => `curl ${http}/v1/audio/transcriptions -H "Authorization: Bearer KEY" \\
  -F file=@talk.mp3 -F response_format=srt`,
  ],
];

/** Called once; the addresses are those under which this page was reached. */
export function startInterfaces() {
  const http = location.origin;
  const ws = http.replace("http", "ws");
  const body = document.querySelector("#api-addresses tbody");
  for (const [method, path, meaning] of ADDRESSES) {
    const row = body.insertRow();
    row.insertCell().textContent = method;
    const address = document.createElement("code");
    address.textContent = path;
    row.insertCell().append(address);
    row.insertCell().textContent = meaning;
  }
  document.getElementById("api-snippets").append(
    ...SNIPPETS.map(([name, write]) => snippet(name, write(http, ws))),
  );
}

function snippet(name, text) {
  const element = document.createElement("article");
  element.className = "snippet";
  const header = document.createElement("header");
  const title = document.createElement("h2");
  title.textContent = name;
  const code = document.createElement("pre");
  code.textContent = text;
  code.tabIndex = 0;
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      copy.textContent = "Selected";
    }
  });
  copy.setAttribute("aria-label", `Copy the example for ${name}`);
  header.append(title, copy);
  element.append(header, code);
  return element;
}
