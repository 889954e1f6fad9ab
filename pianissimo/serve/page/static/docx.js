// A transcript as a Word document: a ZIP file of three parts, stored without compression.

import { clock } from "/page/transcript-view.js";

const TYPES = `<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>`;
const RELATIONS = `<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>`;
const UTF8_NAMES = 0x0800;
const FIRST_DAY = 0x21; // 1 January 1980: the file depends on the transcript only

/** The bytes of a .docx file: a paragraph per segment, with its time. */
export function toDocx({ segments }) {
  const paragraphs = segments.map(
    ({ text, start }) =>
      `<w:p><w:r><w:rPr><w:color w:val="808080"/></w:rPr><w:t xml:space="preserve">${clock(start)}  </w:t></w:r>` +
      `<w:r><w:t xml:space="preserve">${escaped(text)}</w:t></w:r></w:p>`,
  );
  const document = `<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>${paragraphs.join("")}<w:sectPr/></w:body></w:document>`;
  return zip([
    ["[Content_Types].xml", TYPES],
    ["_rels/.rels", RELATIONS],
    ["word/document.xml", document],
  ]);
}

function escaped(text) {
  const plain = text.replace(/[^\t\n\r\x20-\uFFFD]/g, ""); // XML has no control characters
  return plain.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** A ZIP file of [name, text] pairs. */
function zip(parts) {
  const encoder = new TextEncoder();
  const files = [];
  const directory = [];
  let offset = 0;
  for (const [path, text] of parts) {
    const name = encoder.encode(path);
    const data = encoder.encode(text);
    const about = numbers([20, 2], [UTF8_NAMES, 2], [0, 2], [0, 2], [FIRST_DAY, 2], [crc32(data), 4], [data.length, 4], [data.length, 4], [name.length, 2], [0, 2]);
    const local = [numbers([0x04034b50, 4]), about, name, data];
    directory.push(numbers([0x02014b50, 4], [20, 2]), about, numbers([0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), name);
    files.push(...local);
    offset += total(local);
  }
  const end = numbers([0x06054b50, 4], [0, 2], [0, 2], [parts.length, 2], [parts.length, 2], [total(directory), 4], [offset, 4], [0, 2]);
  return new Blob([...files, ...directory, end]);
}

function total(pieces) {
  return pieces.reduce((sum, piece) => sum + piece.length, 0);
}

/** Little-endian bytes of [value, size] pairs. */
function numbers(...pairs) {
  return Uint8Array.from(pairs.flatMap(([value, size]) => Array.from({ length: size }, (_, i) => (value >>> (8 * i)) & 255)));
}

function crc32(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
