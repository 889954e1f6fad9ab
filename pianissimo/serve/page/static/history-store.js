// Transcripts of earlier visits, in the IndexedDB of this browser. They are never sent anywhere.

const NAME = "pianissimo";
const STORE = "transcripts";

let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function run(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

/**
 * Keeps {name, at, transcript}, `at` in ms since 1970; one with an `id` replaces what had it.
 * Resolves to the id. A browser that keeps nothing (a private window, a full disk) gives null.
 */
export async function keep(entry) {
  try {
    const id = await run("readwrite", (store) => store.put(entry));
    dispatchEvent(new Event("history-changed"));
    return id;
  } catch {
    return entry.id ?? null;
  }
}

/** All entries, the newest first; none where the browser keeps nothing. */
export async function entries() {
  try {
    const found = await run("readonly", (store) => store.getAll());
    return found.sort((a, b) => b.at - a.at);
  } catch {
    return [];
  }
}

export async function remove(id) {
  await run("readwrite", (store) => store.delete(id));
  dispatchEvent(new Event("history-changed"));
}

export async function removeAll() {
  await run("readwrite", (store) => store.clear());
  dispatchEvent(new Event("history-changed"));
}
