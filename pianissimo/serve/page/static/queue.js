// Files that wait for their transcript: one at a time, in the order given.

export class Queue {
  #items = []; // { file, name, state, text, transcript, id, controller }
  #running = null;

  /**
   * `work(item, signal)` resolves to the transcript of an item; `changed()` is called after every
   * change. Items are "waiting", "running", "done", "failed" or "cancelled".
   */
  constructor(work, changed) {
    this.work = work;
    this.changed = changed;
  }

  get items() {
    return this.#items;
  }

  get running() {
    return this.#running;
  }

  /** Whether some item is not finished. */
  get busy() {
    return this.#items.some(({ state }) => state === "waiting" || state === "running");
  }

  /** Appends files; those of a queue that is finished are dropped first. Returns the new items. */
  add(files) {
    if (!this.busy) this.#items = [];
    const added = files.map((file) => ({ file, name: file.name, state: "waiting", text: "" }));
    this.#items.push(...added);
    this.changed();
    if (this.#running === null) this.#next();
    return added;
  }

  /** Ends the work on an item, on the server too. */
  cancel(item) {
    if (item.state === "waiting") {
      Object.assign(item, { state: "cancelled", text: "Cancelled." });
      this.changed();
    }
    item.controller?.abort();
  }

  async #next() {
    const item = this.#items.find(({ state }) => state === "waiting");
    this.#running = item ?? null;
    if (item === undefined) {
      this.changed();
      return;
    }
    item.controller = new AbortController();
    item.state = "running";
    this.changed();
    try {
      item.transcript = await this.work(item, item.controller.signal);
      item.state = "done";
    } catch (error) {
      item.state = item.controller.signal.aborted ? "cancelled" : "failed";
      item.text = item.state === "cancelled" ? "Cancelled." : error.message;
    }
    this.#next();
  }
}
