"use strict";
// What the scripts of atlas.html and quiz.html share: the page's data, the slices in its sprite, elements, downloads.

const data = JSON.parse(document.getElementById("data").textContent);
const sprite = document.getElementById("sprite");
const element = (id) => document.getElementById(id);

function make(tag, content, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...[content].flat());
  return made;
}

function place(cell) {
  return [(cell % data.columns) * data.side, Math.floor(cell / data.columns) * data.side];
}

function showCell(canvas, cell) {
  canvas.width = canvas.height = data.side;
  canvas.getContext("2d").drawImage(sprite, ...place(cell), data.side, data.side, 0, 0, data.side, data.side);
}

function download(name, header, rows) {
  const quoted = (cell) => (/[",\n\r]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : `${cell ?? ""}`);
  const text = [header, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  const link = make("a", [], { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
