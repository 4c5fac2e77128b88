// The script of quiz.html, after page.js: asks about one slice after the other and decodes what they are after the last answer.

const answers = []; // { real: the answer, seconds: how long it took }
const Z = 1.959964; // of a 95% interval
let shownAt = 0;

/** The 95% interval of a share, right of n (Wilson 1927). */
function wilson(right, n) {
  const share = right / n, scale = 1 + Z * Z / n, middle = (share + Z * Z / (2 * n)) / scale;
  const half = Z / scale * Math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

const percent = (share) => `${(100 * share).toFixed(0)}%`;
const shownInterval = (right, n) => wilson(right, n).map(percent).join(" to ");
const word = (real) => (real ? "real" : "generated");

function ask() {
  if (answers.length === data.count) {
    showResult();
    return;
  }
  showCell(element("slice"), answers.length);
  element("number").textContent = `slice ${answers.length + 1} of ${data.count}`;
  element("bar").value = answers.length;
  element("back").disabled = !answers.length;
  shownAt = performance.now();
}

function answer(real) {
  answers.push({ real, seconds: (performance.now() - shownAt) / 1000 });
  ask();
}

function goBack() {
  answers.pop();
  ask();
}

function verdict(right) {
  const [low, high] = wilson(right, data.count);
  const text = `${right} of ${data.count} right, ${percent(right / data.count)} (${shownInterval(right, data.count)})`;
  if (low > 0.5) return `${text}: more than by guessing, 50%.`;
  if (high < 0.5) return `${text}: fewer than by guessing, 50%. Real and generated slices differ, but not as you expected.`;
  return `${text}: as many as by guessing, 50%, so far as ${data.count} slices can tell.`;
}

function showResult() {
  const truth = JSON.parse(atob(data.key)), rows = truth.map((of, i) => ({ ...of, i, right: of.real === answers[i].real }));
  element("question").hidden = true;
  element("result").hidden = false;
  element("verdict").textContent = verdict(rows.filter((row) => row.right).length);
  const parts = { "all slices": rows, real: rows.filter((row) => row.real), generated: rows.filter((row) => !row.real) };
  element("shares").replaceChildren(...Object.entries(parts).map(([name, part]) => {
    const right = part.filter((row) => row.right).length, n = part.length;
    return make("tr", [make("th", name), ...[`${right} of ${n}`, percent(right / n), shownInterval(right, n)].map((text) => make("td", text))]);
  }));
  const wrong = rows.filter((row) => !row.right);
  element("mistaken-title").textContent = wrong.length ? `Slices that you took for the other kind: ${wrong.length}` : "You took none for the other kind";
  element("mistaken").replaceChildren(...wrong.map((row) => {
    const canvas = make("canvas", [], { className: "slice" });
    showCell(canvas, row.i);
    return make("figure", [canvas, make("figcaption", `${row.i + 1}: ${word(row.real)}, ${row.slice}${row.real ? "" : ` ${row.class}`}`)]);
  }));
  element("csv").onclick = () => download("quiz.csv", ["number", "class", "slice", "truth", "answer", "seconds"], rows.map((row) => [
    row.i + 1, row.class, row.slice, word(row.real), word(answers[row.i].real), answers[row.i].seconds.toFixed(2),
  ]));
  element("verdict").focus();
}

const KEYS = { r: () => answer(true), g: () => answer(false), backspace: goBack };

document.addEventListener("keydown", (event) => {
  const act = KEYS[event.key.toLowerCase()];
  if (!act || element("question").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
});
element("real").onclick = KEYS.r;
element("generated").onclick = KEYS.g;
element("back").onclick = goBack;
element("begin").onclick = () => {
  element("start").hidden = true;
  element("question").hidden = false;
  ask();
};

sprite.decode().then(() => element("begin").focus());
