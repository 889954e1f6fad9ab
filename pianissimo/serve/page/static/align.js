// Which words two lists have in common.

const MOST_CELLS = 4_000_000;

/** Pairs [i, k] with a[i] equal to b[k], as many as go without crossing; none for lists too long. */
export function align(a, b) {
  const width = b.length + 1;
  if ((a.length + 1) * width > MOST_CELLS) return [];
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let k = b.length - 1; k >= 0; k -= 1) {
      const at = i * width + k;
      longest[at] =
        a[i] === b[k] ? longest[at + width + 1] + 1 : Math.max(longest[at + width], longest[at + 1]);
    }
  }
  const pairs = [];
  for (let i = 0, k = 0; i < a.length && k < b.length; ) {
    const at = i * width + k;
    if (a[i] === b[k]) pairs.push([i++, k++]);
    else if (longest[at + width] >= longest[at + 1]) i += 1;
    else k += 1;
  }
  return pairs;
}

/** A word without case and punctuation: what a difference is about. */
export function plain(word) {
  return word.toLowerCase().replace(/[^\p{L}\p{N}']/gu, "");
}
