// Files dropped anywhere on the page are transcribed; the browser never opens one in its place.

/** Hands dropped files to `take`, an array at a time. */
export function acceptDrops(take) {
  const files = (event) => event.dataTransfer?.types.includes("Files");
  const show = (on) => document.body.classList.toggle("dropping", on);
  addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    show(true);
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) show(false);
  });
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    show(false);
    const dropped = [...event.dataTransfer.files];
    if (dropped.length) take(dropped);
  });
}
