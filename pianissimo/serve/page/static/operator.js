// The Operator tab: models, seats, keys and margins of a running server, behind the admin key.

const KEY = "pianissimo-admin-key";
const REFRESH_MS = 5000;

const at = (id) => document.getElementById(`operator-${id}`);

let timer = 0;

/** Called once with what the server has; without an admin key there is no such tab. */
export function startOperator({ admin }) {
  document.getElementById("tab-operator").hidden = !admin;
  if (!admin) return;
  at("form").onsubmit = (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, at("key").value.trim());
    at("key").value = "";
    refresh();
  };
  new MutationObserver(refresh).observe(document.getElementById("operator"), { attributeFilter: ["hidden"] });
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  const key = sessionStorage.getItem(KEY);
  if (document.getElementById("operator").hidden || !key) return;
  try {
    const headers = { authorization: `Bearer ${key}` };
    const answers = await Promise.all(["/admin/models", "/admin/keys", "/metrics"].map((path) => fetch(path, { headers })));
    if (answers.some(({ status }) => status === 401)) {
      sessionStorage.removeItem(KEY);
      throw new Error("The server does not accept this admin key.");
    }
    const [state, { keys }] = await Promise.all(answers.slice(0, 2).map((answer) => answer.json()));
    show(state, keys, margins(await answers[2].text()));
    timer = setTimeout(refresh, REFRESH_MS);
  } catch (error) {
    at("view").hidden = true;
    at("form").hidden = false;
    at("note").textContent = error.message;
  }
}

/** The real-time margin of each model, from the metrics. */
function margins(text) {
  const line = /^pianissimo_engine_realtime_margin\{.*?model="((?:[^"\\]|\\.)*)".*?\} (\S+)$/gm;
  return new Map([...text.matchAll(line)].map(([, model, value]) => [model, Number(value)]));
}

function show(state, keys, margin) {
  at("form").hidden = true;
  at("note").textContent = state.draining ? "The server drains: it accepts nothing new." : "";
  at("seats").textContent = `${state.streams} of ${state.seats} seats in use, ${state.recordings} recordings`;
  fill(at("models"), state.models.map((model) => [
    model.name,
    model.loaded ? (model.alive ? "serving" : "failed") : "not loaded",
    model.version ?? "–",
    model.sessions ?? "–",
    margin.has(model.name) ? `${margin.get(model.name).toFixed(1)} x` : "–",
  ]));
  fill(at("keys"), keys.map((key) => [
    key.name,
    `${key.streams}${key.limits.streams === null ? "" : ` of ${key.limits.streams}`}`,
    key.requests,
    `${(key.audio_seconds / 60).toFixed(1)} min`,
    key.limited,
  ]));
  at("view").hidden = false;
}

function fill(table, rows) {
  table.querySelector("tbody").replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      row.append(...cells.map((text, i) => {
        const cell = document.createElement(i ? "td" : "th");
        if (i === 0) cell.scope = "row";
        cell.textContent = text;
        return cell;
      }));
      return row;
    }),
  );
}
