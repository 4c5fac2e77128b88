"""One page that holds all that predict.py found: report.html, with its pictures inside, and its numbers in report.json.

    table = Table(["class", "KID x 1000", "AUC"], [["AD", 59.2, (0.81, 0.77, 0.85)], ["NC", None, None]], "Unseen slices.")
    figure = Figure("predictions/AD_generated.png", "16 latents of seed 0.")
    write_report("predictions", "What AD learnt", {"seed": 0}, [Section("Slices", [], [table], [figure])])

The page can be passed on as one file. It asks nothing of any network, which its Content-Security-Policy forbids as well. It holds
whatever its pictures show, real slices too. A click on the head of a column sorts the table.
"""

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from html import escape
from string import Template
from typing import NamedTuple

from PIL import Image

from utils import UserError, atomic_path

LEDE = "What trained generators of brain slices make, and what it is worth. Every number is in report.json too, unrounded."
NOTHING = "\N{EN DASH}"  # in the place of a number that there is none of
ENLARGED = 256  # pictures smaller than this are enlarged, unsmoothed


class Table(NamedTuple):
    """A cell is a word, a number, a (value, low, high) interval, or None or NaN where there is nothing."""

    columns: list
    rows: list  # a list each, as long as columns
    caption: str


class Figure(NamedTuple):
    path: str  # of a PNG, GIF or JPEG
    caption: str


class Section(NamedTuple):
    """Paragraphs, then tables, then figures; numbers, a dict, are for report.json alone."""

    title: str
    text: Sequence = ()
    tables: Sequence = ()
    figures: Sequence = ()
    numbers: dict | None = None


def write_report(folder, title, facts, sections):
    """Write report.html and report.json into <folder>, which is there; returns both paths. facts: {name: word or number}."""
    page, numbers = (os.path.join(folder, name) for name in ("report.html", "report.json"))
    with atomic_path(page) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(page_html(title, facts, sections))
    with atomic_path(numbers) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(as_json(title, facts, sections), file, indent=2, allow_nan=False, default=str)
    return page, numbers


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def plain(value):
    """Dicts, lists, NamedTuples, NumPy and torch numbers and arrays as JSON can hold them: None for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(title, facts, sections):
    """All of the report but its pictures, which it names."""

    def cell(value):
        return plain(dict(zip(("value", "low", "high"), value)) if isinstance(value, (list, tuple)) else value)

    return {
        "title": title,
        "facts": plain(facts),
        "sections": [
            {
                "title": section.title,
                "text": list(section.text),
                "tables": [
                    {"caption": table.caption, "columns": list(table.columns), "rows": [list(map(cell, row)) for row in table.rows]}
                    for table in section.tables
                ],
                "figures": [{"file": os.path.basename(figure.path), "caption": figure.caption} for figure in section.figures],
                "numbers": plain(section.numbers or {}),
            }
            for section in sections
        ],
    }


def decimals(size, digits=3):
    """Decimals that show so many digits of a number of this size; no digit before the point is ever rounded away."""
    return max(0, digits - 1 - math.floor(math.log10(size))) if size else 0


def number_text(x, places=None):
    """An int in full; a float with `places` decimals, or with three digits."""
    if not math.isfinite(x):
        text = NOTHING if math.isnan(x) else f"{x}".replace("inf", "\N{INFINITY}")
    elif isinstance(x, float) and places is None and x and not 1e-4 <= abs(x) < 1e9:
        text = f"{x:.2e}"
    else:
        if places is None:
            places = decimals(abs(x)) if isinstance(x, float) else 0
        text = f"{round(x, places) + 0:{',' if abs(x) >= 10000 else ''}.{places}f}"  # + 0: not -0.00
    return text.replace("-", "\N{MINUS SIGN}")


def interval_text(value, low, high):
    """ "value (low to high)", with two digits of the interval's width, and at most five of the greatest of the three."""
    value, low, high = (math.nan if x is None else float(x) for x in (value, low, high))
    if math.isnan(low) and math.isnan(high):
        return number_text(value)
    width, greatest = high - low, max(map(abs, (value, low, high)))
    places = min(decimals(width, 2), decimals(greatest, 5)) if 0 < width < math.inf and greatest >= 1e-4 else None
    value, low, high = (number_text(x, places) for x in (value, low, high))
    return f"{value} ({low} to {high})"


NUMBER = re.compile(
    r"([-+\N{MINUS SIGN}]?)(\d+|\d{1,3}(?:,\d{3})+)(\.\d+)?(e[-+]?\d+)?(\s?%)?"  # -1,234.5e6 %
    r"(\s?[(\N{PLUS-MINUS SIGN}].*)?"
)  # (1 to 2), or +- 1


def cell_text(value):
    """What a table's cell shows, and the number to sort it by: None for words, nan where there is nothing."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or isinstance(value, str) and value.strip() in ("", "-", NOTHING):
        return NOTHING, math.nan
    if isinstance(value, bool):
        return "yes" if value else "no", None
    if isinstance(value, (list, tuple)):
        return interval_text(*value), math.nan if value[0] is None else float(value[0])
    if isinstance(value, (int, float)):
        return number_text(value), float(value)
    text, found = str(value), NUMBER.fullmatch(str(value).strip())
    if not found:
        return text, None
    sign, whole, fraction, power, percent, _ = found.groups("")
    size = float(whole.replace(",", "") + fraction + power) / (100 if percent else 1)
    return text, size if sign in ("", "+") else -size


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of the page


def words(text):
    """Text as HTML, fit for an attribute too."""
    return escape(" ".join(str(text).split()))


def table_html(table, number):
    cells = [[cell_text(value) for value in row] for row in table.rows]
    numeric = [not any(key is None for _, key in column) for column in zip(*cells)] or [False] * len(table.columns)
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    heads = "".join(f'<th scope="col"{kind}>{words(name)}</th>' for name, kind in zip(table.columns, kinds, strict=True))
    rows = []
    for row in cells:
        line = ""
        for i, ((text, key), kind) in enumerate(zip(row, kinds, strict=True)):
            tag = 'th scope="row"' if i == 0 and key is None else "td"
            sorts_as = "" if key is None or math.isnan(key) else str(key).replace("inf", "Infinity")
            value = "" if key is None else f' data-value="{sorts_as}"'
            line += f"<{tag}{kind}{value}>{words(text)}</{tag[:2]}>"
        rows.append(f"<tr>{line}</tr>\n")
    name = f'aria-labelledby="caption-{number}"'
    return (
        f'<figure id="table-{number}">\n'
        f'<figcaption id="caption-{number}"><b>Table {number}.</b> {words(table.caption)}</figcaption>\n'
        f'<div class="box" role="region" tabindex="0" {name}><table {name}>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n</figure>\n"
    )


def figure_html(figure, number):
    """The picture as a data URI, byte for byte; UserError when it cannot be read."""
    try:
        with Image.open(figure.path, formats=("PNG", "GIF", "JPEG")) as picture:
            kind, (width, height) = Image.MIME[picture.format], picture.size
        with open(figure.path, "rb") as file:
            data = base64.b64encode(file.read()).decode()
    except OSError as error:
        reason = error.strerror or "no PNG, GIF or JPEG"
        raise UserError(f"{figure.path}: the report cannot show this picture ({reason}); draw it again") from None
    zoom, name = max(1, ENLARGED // max(width, height)), words(os.path.basename(figure.path))
    return (
        f'<figure id="figure-{number}">\n<img{" class=pixels" if zoom > 1 else ""} src="data:{kind};base64,{data}" '
        f'width="{width * zoom}" height="{height * zoom}" alt="{words(figure.caption.split(". ")[0]) or name}">\n'
        f"<figcaption><b>Figure {number}.</b> {words(figure.caption)} <code>{name}</code></figcaption>\n</figure>\n"
    )


def page_html(title, facts, sections):
    contents, body, tables, figures = "", "", 0, 0
    for number, section in enumerate(sections, 1):
        contents += f'<li><a href="#section-{number}">{words(section.title)}</a></li>\n'
        body += f'<section id="section-{number}">\n<h2>{number}. {words(section.title)}</h2>\n'
        body += "".join(f"<p>{words(paragraph)}</p>\n" for paragraph in section.text)
        for table in section.tables:
            tables += 1
            body += table_html(table, tables)
        for figure in section.figures:
            figures += 1
            body += figure_html(figure, figures)
        body += "</section>\n"
    facts = "".join(f"<dt>{words(name)}</dt><dd>{words(cell_text(value)[0])}</dd>\n" for name, value in facts.items())
    return Template(PAGE).substitute(
        title=words(title),
        lede=words(LEDE),
        facts=facts,
        contents=contents,
        body=body,
        style=STYLE,
        script=SCRIPT,
        style_hash=policy_hash(STYLE),
        script_hash=policy_hash(SCRIPT),
    )


def policy_hash(text):
    """What a Content-Security-Policy calls this inline style or script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


# ---------------------------------------------------------------------------------------------------------------------
# The page. It runs and draws what bears one of its two hashes, and loads nothing but what its data URIs hold.

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src $style_hash; \
script-src $script_hash; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$lede</p>
<dl>
$facts</dl>
<nav aria-label="Contents">
<h2>Contents</h2>
<ol>
$contents</ol>
</nav>
</header>
<main>
$body</main>
<script>$script</script>
</body>
</html>
"""

STYLE = """
:root { --paper: #fff; --ink: #1d2126; --soft: #59626c; --line: #d5dae0; --shade: #f4f6f8; --accent: #2a6f97; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e2e5e9; --soft: #9ba5af; --line: #363d45; --shade: #1d2227; --accent: #83bbdd; }
}
body { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; overflow-wrap: break-word; }
h1, h2 { line-height: 1.25; text-wrap: balance; }
h1 { margin: 0 0 .5rem; font-size: 2rem; }
h2 { margin: 3rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.35rem; }
p, figcaption, dl { max-width: 44rem; }
a { color: var(--accent); }
a:focus-visible, button:focus-visible, .box:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; color: var(--soft); }

dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 1.5rem 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { min-width: 0; margin: 0; overflow-wrap: anywhere; }
nav h2 { margin: 2rem 0 .5rem; padding: 0; border: 0; font-size: 1rem; }
nav ol { margin: 0; padding-left: 1.6rem; columns: 20rem; }

figure { margin: 1.75rem 0; }
figcaption { margin: .5rem 0; font-size: .9rem; color: var(--soft); }
figcaption code { display: inline-block; }
figcaption b { color: var(--ink); }
img { display: block; max-width: 100%; height: auto; background: #fff; }
img.pixels { image-rendering: pixelated; }

.box { overflow-x: auto; background: linear-gradient(var(--paper), var(--paper)) right / 1.5rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / .6rem 100% no-repeat; }  /* a shadow where more is to come */
table { width: max-content; border-spacing: 0; border-block: 2px solid var(--ink); font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { max-width: 24rem; padding: .3rem .75rem; text-align: left; vertical-align: baseline; font-weight: normal;
  overflow-wrap: break-word; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr:hover { background: var(--shade); }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; max-width: 9rem; }
tr > th:first-child { position: sticky; left: 0; background: var(--paper); }
button { all: unset; cursor: pointer; }
button::after { content: "\\a0\\2195"; color: var(--line); }
[aria-sort] button::after { color: var(--accent); }
[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
[aria-sort=descending] button::after { content: "\\a0\\2193"; }

@media (max-width: 40rem) {
  body { padding-top: 1.25rem; }
  h1 { font-size: 1.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  tr > th:first-child { max-width: 50vw; }
}
@media print {
  @page { margin: 18mm 16mm; }
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  h2, p { break-after: avoid; }
  a { color: inherit; text-decoration: none; }
  figure, tr { break-inside: avoid; }
  img { max-height: 225mm; object-fit: contain; object-position: left top; }
  .box { overflow: visible; background: none; }
  table { width: auto; font-size: 8pt; }
  th, td { padding: .1rem .35rem; }
  tr > th:first-child { position: static; }
  button::after { content: none !important; }
}
"""

SCRIPT = """
"use strict";
// The head of every column becomes a button. Pressed once it sorts the rows upwards, twice downwards, then back.
const inWords = new Intl.Collator("en", { numeric: true }).compare;
const kind = cell => cell.dataset.value === undefined ? 1 : cell.dataset.value === "" ? 2 : 0;  // number, words, nothing last
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      heads.forEach(other => other.removeAttribute("aria-sort"));
      if (order === null) return body.append(...rows);
      head.setAttribute("aria-sort", order || "ascending");
      const sign = order ? -1 : 1;
      body.append(...[...rows].sort((one, other) => {
        const a = one.cells[column], b = other.cells[column];
        return kind(a) - kind(b) ||
          sign * (kind(a) ? inWords(a.textContent, b.textContent) : a.dataset.value - b.dataset.value);
      }));
    });
  });
}
"""
