"""report.html, one page with everything that predict.py found, figures included, and report.json with its numbers.

    table = ReportTable(["class", "KID x 1000", "AUC"], [["AD", 59.2, (0.81, 0.77, 0.85)], ["NC", None, None]], "Held-out slices.")
    figure = ReportFigure("predictions/AD_generated.png", "16 latents of seed 0.")
    write_report("predictions", "What AD learnt", {"seed": 0}, [Section("Slices", [], [table], [figure])])

The page is a single file that can be passed on: it contains the images that its figures show, real slices included. It loads
nothing from the network, and its Content-Security-Policy forbids that. The template report.html.j2 escapes every value.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from analysis.bootstrap import POWER
from utils import UserError, atomic_path

NOTHING = "\N{EN DASH}"  # shown where there is no value
UPSCALED = 256  # pixels: smaller images are upscaled towards this, not smoothed


class ReportTable(NamedTuple):
    """A cell is text, a number, an interval (value, low, high), or None or NaN where there is no value."""

    columns: list
    rows: list  # of lists, each as long as columns
    caption: str


class ReportFigure(NamedTuple):
    path: str  # of a PNG, GIF or JPEG
    caption: str


class Section(NamedTuple):
    """Paragraphs, then tables, then figures. `numbers` only goes into report.json, `pages` only into report.html."""

    title: str
    text: Sequence = ()
    tables: Sequence = ()
    figures: Sequence = ()
    numbers: dict | None = None
    pages: Sequence = ()  # (path, what it is) of HTML files in the folder of the report, which links them


def write_report(folder, title, facts, sections):
    """Write report.html and report.json into an existing folder and return both paths. facts: {name: text or number}.

    UserError if the image of a figure cannot be read; nothing is written then.
    """
    page_path, json_path = (os.path.join(folder, name) for name in ("report.html", "report.json"))
    page, content = render(title, facts, sections), as_json(title, facts, sections)
    with atomic_path(page_path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(page)
    with atomic_path(json_path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, allow_nan=False, default=str)
    return page_path, json_path


# ---------------------------------------------------------------------------------------------------------------------
# report.json


def plain(value):
    """Dicts, lists, NamedTuples, NumPy and torch values as JSON can hold them; numbers that are not finite become None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(title, facts, sections):
    """The report as a dict of plain values; figures are named, not included."""
    named = [[figure._replace(path=os.path.basename(figure.path)) for figure in section.figures] for section in sections]
    sections = [section._replace(figures=figures) for section, figures in zip(sections, named)]
    return plain({"title": title, "facts": facts, "sections": sections})


# ---------------------------------------------------------------------------------------------------------------------
# Numbers as text


def decimals(size, digits=3):
    """Number of decimals that show so many digits of a number of this size; digits before the point are never rounded."""
    return max(0, digits - 1 - math.floor(math.log10(size))) if size else 0


def number_text(x, places=None):
    """An int in full, a float with `places` decimals or three digits: 0.812, 12,346, 1.20e-05."""
    if math.isnan(x):
        return NOTHING
    if math.isinf(x):
        text = "-\N{INFINITY}" if x < 0 else "\N{INFINITY}"
    elif isinstance(x, float) and places is None and x and not 1e-4 <= abs(x) < 1e9:
        text = f"{x:.2e}"
    else:
        if places is None:
            places = decimals(abs(x)) if isinstance(x, float) else 0
        text = f"{round(x, places) + 0:{',' if abs(x) >= 10000 else ''}.{places}f}"  # adding 0 turns -0.0 into 0.0
    return text.replace("-", "\N{MINUS SIGN}")


def interval_text(value, low, high, detectable=None):
    """ "value (low to high)" with two digits of the interval's width, but at most five digits of the largest number.

    detectable: that of an `Auc`, whose power is added.
    """
    value, low, high = (math.nan if x is None else float(x) for x in (value, low, high))
    if math.isnan(low) and math.isnan(high):
        return number_text(value)
    width, largest = high - low, max(map(abs, (value, low, high)))
    places = min(decimals(width, 2), decimals(largest, 5)) if 0 < width < math.inf and largest >= 1e-4 else None
    value, low, high = (number_text(x, places) for x in (value, low, high))
    power = "" if detectable is None else f"; {POWER:.0%} power from {number_text(detectable, places)}"
    return f"{value} ({low} to {high}{power})"


def cell_text(value):
    """What a cell shows, and its key for sorting: a number as JavaScript reads it, "" where there is no value, None for text."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or value == "":
        return NOTHING, ""
    if isinstance(value, (list, tuple)):
        return interval_text(*value), cell_text(value[0])[1]
    if isinstance(value, (int, float)):
        return number_text(value), "" if math.isnan(value) else str(float(value)).replace("inf", "Infinity")
    return str(value), None


# ---------------------------------------------------------------------------------------------------------------------
# report.html


def render(title, facts, sections):
    """The page as text."""
    table_numbers, figure_numbers = count(1), count(1)
    contents = [
        {
            "title": section.title,
            "text": section.text,
            "pages": [(os.path.basename(path), text) for path, text in section.pages],
            "tables": [table_content(table) | {"number": next(table_numbers)} for table in section.tables],
            "figures": [figure_content(figure) | {"number": next(figure_numbers)} for figure in section.figures],
        }
        for section in sections
    ]
    facts = [(name, cell_text(value)[0]) for name, value in facts.items()]
    return fill_template("report.html.j2", title=title, facts=facts, sections=contents)


def fill_template(name, **content):
    """The text of a page, from a template in this folder, which escapes every value of `content`."""
    loader, trim = FileSystemLoader(os.path.dirname(os.path.abspath(__file__))), {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **trim)
    return environment.get_template(name).render(policy_hash=policy_hash, **content)


def table_content(table):
    """What the template needs of a table. A column without text is numeric. ValueError if a row is too short or too long."""
    rows = [[cell_text(value) for value in row] for row in table.rows]
    numeric = [all(key is not None for _, key in column) for column in zip(*rows)] or [False] * len(table.columns)

    def cells(row):
        return [{"text": text, "key": key, "numeric": number} for (text, key), number in zip(row, numeric, strict=True)]

    columns = [{"name": name, "numeric": number} for name, number in zip(table.columns, numeric, strict=True)]
    return {"caption": table.caption, "columns": columns, "rows": [cells(row) for row in rows]}


def figure_content(figure):
    """What the template needs of a figure, its file as a data URI; UserError if that cannot be read."""
    try:
        with Image.open(figure.path, formats=("PNG", "GIF", "JPEG")) as image:
            kind, (width, height) = Image.MIME[image.format], image.size
        with open(figure.path, "rb") as file:
            data = base64.b64encode(file.read()).decode()
    except OSError as error:
        reason = error.strerror or "no PNG, GIF or JPEG"
        raise UserError(f"{figure.path}: the report cannot show this image ({reason}); draw it again") from None
    zoom, name = max(1, UPSCALED // max(width, height)), os.path.basename(figure.path)
    return {
        "file": name,
        "caption": figure.caption,
        "alt": figure.caption.split(". ")[0] or name,
        "uri": f"data:{kind};base64,{data}",
        "width": width * zoom,
        "height": height * zoom,
        "upscaled": zoom > 1,
    }


def policy_hash(text):
    """The source expression by which a Content-Security-Policy allows this inline style or script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
