// The fields that tell a model what to expect: the language, and hotwords.

const HOTWORDS = "names and terms, separated by commas";

/** Adds the fields to `root`; `read()` gives {language, hotwords}, empty where nothing is set. */
export function addHints(root, changed = () => {}) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = "Language and hotwords";
  const language = field("Language", { size: 8, placeholder: "auto", autocapitalize: "off" });
  const hotwords = field("Hotwords", { size: 40, placeholder: HOTWORDS });
  details.append(summary, language.label, hotwords.label);
  details.addEventListener("change", changed);
  root.append(details);
  return {
    read: () => ({
      language: language.input.value.trim(),
      hotwords: hotwords.input.value.split(",").map((text) => text.trim()).filter(Boolean),
    }),
  };
}

function field(name, options) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  label.className = "field";
  Object.assign(input, { type: "text", spellcheck: false, autocomplete: "off", ...options });
  label.append(`${name} `, input);
  return { label, input };
}
