// The row below a transcript: correct, copy, save.

import { toDocx } from "/page/docx.js";
import { KINDS, toText } from "/page/subtitles.js";

const DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";
const SAVES = { ...KINDS, docx: [DOCX, toDocx] };

/**
 * Fills `root` with buttons for `view`. `about()` gives {model, duration, language, name} of the
 * transcript; `extra` are further buttons as [label, action]. `edited(segments)` is called after a
 * correction.
 */
export function addTools(root, view, about, extra = [], edited = () => {}) {
  const kept = document.createElement("span");
  kept.className = "kept";
  kept.setAttribute("role", "status");
  const say = (text) => {
    kept.textContent = text;
  };
  const transcript = () => {
    if (view.editing) edit.click();
    const { segments } = view;
    const { model, duration, language = null } = about();
    return { model, duration, language, segments };
  };
  const edit = button("Edit", () => {
    view.edit(!view.editing);
    edit.textContent = view.editing ? "Done" : "Edit";
    edit.setAttribute("aria-pressed", view.editing);
    if (!view.editing) edited(view.segments);
  });
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(toText(transcript()));
      say("Copied.");
    } catch {
      say("The browser does not allow copying here; save the text instead.");
    }
  });
  const saves = Object.entries(SAVES).map(([suffix, [type, write]]) => {
    const save = button(suffix, () => {
      saveFile(new Blob([write(transcript())], { type }), `${about().name}.${suffix}`);
    });
    save.setAttribute("aria-label", `Save as ${suffix}`);
    return save;
  });
  const others = extra.map(([label, action]) => button(label, action));
  root.replaceChildren(edit, copy, ...saves, ...others, kept, legend());
}

/** Gives a file to the user. */
export function saveFile(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function button(label, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = label;
  element.onclick = action;
  return element;
}

function legend() {
  const element = document.createElement("span");
  element.className = "legend";
  for (const kind of ["unsure", "doubtful"]) {
    const word = document.createElement("span");
    word.className = `word ${kind}`;
    word.textContent = kind;
    element.append(word);
  }
  return element;
}
