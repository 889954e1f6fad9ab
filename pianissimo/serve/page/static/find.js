// Search in a transcript: words are marked as they are typed, Enter goes to the next place.

/** Fills `root` with the field for `view`. */
export function addFind(root, view) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  label.className = "field";
  Object.assign(input, { type: "search", placeholder: "Find in transcript" });
  input.setAttribute("aria-label", "Find in transcript");
  count.className = "hint";
  count.setAttribute("role", "status");
  label.append(input);
  root.replaceChildren(label, count);
  let places = [];
  let at = -1;

  const show = () => {
    if (places.length) count.textContent = `${at + 1} of ${places.length}`;
    else count.textContent = input.value.trim() ? "not found" : "";
    if (places.length) view.reveal(places[at]);
  };
  const search = () => {
    places = view.find(input.value);
    at = places.length ? 0 : -1;
    show();
  };
  input.oninput = search;
  input.onkeydown = (event) => {
    if (event.key !== "Enter" || places.length === 0) return;
    event.preventDefault();
    at = (at + (event.shiftKey ? places.length - 1 : 1)) % places.length;
    show();
  };
  return {
    /** The transcript is another one. */
    clear: () => {
      input.value = "";
      search();
    },
  };
}
