// The server as the page sees it: who may ask, what there is, and recordings.

const KEY = "pianissimo-key";
// Browsers close a socket whose server accepts none of the protocols they offered.
const PROTOCOL = "pianissimo";

let asking = null;

/** Asks for the key, once for all who want it now. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const input = document.getElementById("key-input");
    const again = sessionStorage.getItem(KEY) !== null;
    if (again) document.getElementById("key-text").textContent = "The server does not accept this key.";
    input.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      sessionStorage.setItem(KEY, input.value.trim());
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

/** fetch with the key; asks for one when the server wants it. */
export async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    await askForKey();
  }
}

/** The JSON of an answer; throws an Error with the server's own words. */
export async function read(response) {
  const body = await response.json();
  if (!response.ok) throw new Error(body.error?.message ?? response.statusText);
  return body;
}

export async function describe() {
  return read(await request("/page/server"));
}

/** A socket of this server, with the key among its protocols: it has no other place there. */
export function openSocket(path) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const key = sessionStorage.getItem(KEY);
  return new WebSocket(url, key ? [PROTOCOL, `pianissimo-key.${key}`] : PROTOCOL);
}

/**
 * The transcript of a recording heard whole. `progress(fraction, text)` is called on the way;
 * aborting `signal` ends the work on the server too.
 */
export async function transcribe(
  file,
  { model, gain, language = "", hotwords = [], speakers = "", signal, progress = () => {} },
) {
  const form = new FormData();
  form.append("model", model);
  if (gain) form.append("gain", gain);
  if (language) form.append("language", language);
  if (hotwords.length) form.append("hotwords", JSON.stringify(hotwords));
  if (speakers) form.append("speakers", speakers);
  form.append("file", file, file.name ?? "recording.wav");
  const response = await request("/page/recordings", { method: "POST", body: form, signal });
  if (!response.ok) await read(response);
  for await (const line of lines(response.body)) {
    const news = JSON.parse(line);
    if (news.type === "error") throw new Error(news.error.message);
    if (news.type === "transcript") return news;
    progress(news);
  }
  throw new Error("the connection was lost before the end");
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
