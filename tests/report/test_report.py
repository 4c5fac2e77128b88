"""The page is complete, escapes what it is given and can be sorted, and report.json gives the numbers back."""

import base64
import json
import math
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.bootstrap import Auc
from report import report
from report.report import ReportFigure, ReportTable, Section, write_report
from utils import UserError

EVIL = """<script>document.title="owned"</script> </td>'"><img src=http://x.example/y onerror=alert(1)> $body & Ünïcode 脳"""
VOID = {"meta", "link", "img"}
NAN, INF = math.nan, math.inf
SORTED = ReportTable(
    ["slice", "AUC", "share", "change", "mixed"],
    [
        ["slice 10", (0.81, 0.77, 0.85), 0.12, -3.5, "64x64"],
        ["slice 9", (0.9, 0.8, 1.0), None, INF, 3.0],
        ["Slice 2", None, 0.095, -0.25, "8x8"],
        ["slice 1", (0.5, 0.4, 0.6), 1.01, -1200, NAN],
        ["slice 3", (NAN, NAN, NAN), -0.04, 1e-7, 20],
    ],
    "For sorting.",
)


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Page(HTMLParser):
    """Collects all tags and the text outside of style and script, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def pictures(tmp_path):
    """Paths of a PNG with a hostile name and of a GIF of two frames."""
    grey = np.random.default_rng(0).integers(0, 256, (2, 300, 280), dtype=np.uint8)
    paths = [str(tmp_path / """a"b'<i> & ü.png"""), str(tmp_path / "moves.gif")]
    Image.fromarray(grey[0]).save(paths[0])
    Image.fromarray(grey[0]).save(paths[1], save_all=True, append_images=[Image.fromarray(grey[1])])
    return paths


@pytest.fixture
def written(tmp_path, pictures):
    """(page, JSON) of a report with a hostile name wherever a name can be."""
    sections = [
        Section(
            EVIL,
            [EVIL, "two\nlines"],
            [ReportTable([EVIL, "number"], [[EVIL, 1.5], ["b", None]], EVIL)],
            [ReportFigure(pictures[0], EVIL)],
            {EVIL: [1.5, NAN], "array": np.array([[1, 2]]), "one": np.float64(0.1), "path": tmp_path},
        ),
        Section("empty"),
        Section("empty", [], [SORTED, ReportTable(["nothing"], [], "")], [ReportFigure(pictures[1], EVIL)]),
    ]
    (tmp_path / "out").mkdir()
    page, numbers = write_report(str(tmp_path / "out"), EVIL, {"command": EVIL, "seed": 20000, "none": None}, sections)
    assert sorted(os.listdir(tmp_path / "out")) == ["report.html", "report.json"]
    with open(page, encoding="utf-8") as html, open(numbers, encoding="utf-8") as file:
        return html.read(), file.read()


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_page_is_complete_and_loads_nothing(written):
    page = Page(written[0])
    assert page.tags[0] == ("html", {"lang": "en"})
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) == 3 + 2 * 3 + 2  # sections, tables and their captions, figures
    targets = [attributes["href"][1:] for attributes in page.all("a")]
    assert targets == ["section-1", "section-2", "section-3"] and set(targets) <= set(ids)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert tag != "link" or attributes["href"] == "data:,"
        assert set(attributes.get("aria-labelledby", ids[0]).split()) <= set(ids)
    with open(os.path.join(os.path.dirname(report.__file__), "report.html.j2")) as template:
        assert not re.search(r"url\(|@import|fetch|XMLHttp|https?:", template.read())
    policy, viewport = (page.all("meta")[i]["content"] for i in (1, 2))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and "width=device-width" in viewport
    assert not re.search("unsafe|http|\\*", policy)
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", written[0], re.DOTALL)
        assert rules[f"{tag}-src"] == report.policy_hash(content) and "{" in content and "&#" not in content
    assert [len(page.all(tag)) for tag in ("script", "style", "img", "figure", "table", "h1")] == [1, 1, 2, 5, 3, 1]


def test_hostile_names_are_escaped_and_shown_unchanged(written):
    page = Page(written[0])
    assert page.text.count(EVIL) == 3 + 3 + 3 + 2  # title, h1, fact; contents, h2, paragraph; table; captions
    assert all(picture["alt"] == EVIL for picture in page.all("img"))
    assert "<script>document" not in written[0] and "two\nlines" in page.text
    assert """a"b'<i> & ü.png""" in page.text


def test_figures_contain_their_files_byte_for_byte(written, pictures):
    for picture, path, kind in zip(Page(written[0]).all("img"), pictures, ("png", "gif"), strict=True):
        head, data = picture["src"].split(",", 1)
        with open(path, "rb") as file:
            assert base64.b64decode(data, validate=True) == file.read()
        assert head == f"data:image/{kind};base64" and (picture["width"], picture["height"]) == ("280", "300")


@pytest.mark.parametrize("side, shown", [(64, 256), (100, 200), (128, 256), (129, 129), (600, 600)])
def test_small_images_are_upscaled_by_whole_factors(tmp_path, side, shown):
    Image.new("L", (side, side // 2)).save(tmp_path / "a.png")
    page, _ = write_report(str(tmp_path), "", {}, [Section("a", figures=[ReportFigure(str(tmp_path / "a.png"), "")])])
    with open(page, encoding="utf-8") as file:
        (picture,) = Page(file.read()).all("img")
    assert picture["width"] == str(shown) and picture["height"] == str(side // 2 * shown // side)
    assert (picture.get("class") == "pixels") == (shown > side) and picture["alt"] == "a.png"


def test_write_report_names_images_that_cannot_be_read_and_writes_nothing(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name, reason in (("gone.png", "No such file"), ("text.png", "no PNG"), (".", "directory|Permission")):
        with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / name))}: .*{reason}"):
            write_report(str(tmp_path), "", {}, [Section("a", figures=[ReportFigure(str(tmp_path / name), "")])])
    assert os.listdir(tmp_path) == ["text.png"]


def test_write_report_takes_file_names_that_are_no_valid_text(tmp_path):
    name = os.fsdecode(b"\xff")
    page, numbers = write_report(str(tmp_path), name, {name: name}, [])
    assert json.loads(Path(numbers).read_text())["title"] == name and "<h1>" in Path(page).read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def test_json_is_strict_and_contains_what_was_given(written, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(written[1], parse_constant=refuse)
    assert found["title"] == EVIL and found["facts"] == {"command": EVIL, "seed": 20000, "none": None}
    first, second, third = found["sections"]
    assert first["title"] == EVIL and first["text"] == [EVIL, "two\nlines"]
    assert first["numbers"] == {EVIL: [1.5, None], "array": [[1, 2]], "one": 0.1, "path": str(tmp_path)}
    assert first["tables"] == [{"caption": EVIL, "columns": [EVIL, "number"], "rows": [[EVIL, 1.5], ["b", None]]}]
    assert first["figures"][0] == {"path": """a"b'<i> & ü.png""", "caption": EVIL}
    assert second == {"title": "empty", "text": [], "tables": [], "figures": [], "numbers": None, "pages": []}
    assert third["tables"][0]["rows"][0] == ["slice 10", [0.81, 0.77, 0.85], 0.12, -3.5, "64x64"]
    assert third["tables"][0]["rows"][4] == ["slice 3", [None, None, None], -0.04, 1e-7, 20]


def test_plain_converts_arrays_and_named_tuples():
    given = {
        "a": Interval(0.5, NAN, INF),
        "b": (1, 2),
        3: np.float32(0.5),
        "c": torch.tensor([1.0, -INF]),
        "d": np.bool_(True),
        "e": {"f": np.int64(3), "g": "nan", "h": None},
    }
    assert report.plain(given) == {
        "a": {"value": 0.5, "low": None, "high": None},
        "b": [1, 2],
        "3": 0.5,
        "c": [1.0, None],
        "d": True,
        "e": {"f": 3, "g": "nan", "h": None},
    }
    assert given["b"] == (1, 2)  # not changed in place


@pytest.mark.parametrize(
    "value, text",
    [
        (0.8123, "0.812"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (0.0, "0"),
        (-0.0, "0"),
        (-0.03456, "−0.0346"),
        (12.345, "12.3"),
        (123.4, "123"),
        (1234.5, "1234"),
        (12345.6, "12,346"),
        (0.00012, "0.000120"),
        (0.000012, "1.20e−05"),
        (-2e12, "−2.00e+12"),
        (7, "7"),
        (-7, "−7"),
        (9999, "9999"),
        (288500, "288,500"),
        (np.float32(0.25), "0.250"),
        (np.int64(3), "3"),
        (None, "–"),
        (NAN, "–"),
        (np.nan, "–"),
        (INF, "∞"),
        (-INF, "−∞"),
        ("", "–"),
        ("-", "-"),
        ("AD", "AD"),
        ((0.8123, 0.7712, 0.8531), "0.812 (0.771 to 0.853)"),
        (Interval(-0.03, -0.12, 0.06), "−0.03 (−0.12 to 0.06)"),
        (Auc(0.55, 0.4, 0.7, 0.732), "0.55 (0.40 to 0.70; 80% power from 0.73)"),
        ((0.999, 0.998, 1.0), "0.9990 (0.9980 to 1.0000)"),
        ((812.3, 790.1, 833.9), "812 (790 to 834)"),
        ((1, 0, 2), "1.0 (0.0 to 2.0)"),
        ((0.004, -0.0004, 0.1), "0.00 (0.00 to 0.10)"),
        ((1.0, 1.0, 1.0), "1.00 (1.00 to 1.00)"),
        ((1.0, 0.9999999, 1.0), "1.0000 (1.0000 to 1.0000)"),
        ((3e-6, 1e-6, 5e-6), "3.00e−06 (1.00e−06 to 5.00e−06)"),
        ((0.5, None, None), "0.500"),
        ((None, NAN, NAN), "–"),
        ((0.5, 0.4, None), "0.500 (0.400 to –)"),
    ],
)
def test_cell_text_of_numbers_intervals_and_text(value, text):
    assert report.cell_text(value)[0] == text


@pytest.mark.parametrize(
    "value, key",
    [
        (0.5, "0.5"),
        (3, "3.0"),
        (-INF, "-Infinity"),
        (None, ""),
        (NAN, ""),
        ("", ""),
        ((0.81, 0.77, 0.85), "0.81"),
        ((None, None, None), ""),
        ("0.81", None),
        ("64x64", None),
        ("218391_78.jpeg", None),
        ("2025-11-22", None),
        ("AD", None),
    ],
)
def test_cell_text_has_a_number_to_sort_by(value, key):
    assert report.cell_text(value)[1] == key


def test_a_row_that_is_not_as_long_as_the_head_is_an_error():
    with pytest.raises(ValueError):
        report.table_content(ReportTable(["a", "b"], [[1]], ""))


# ---------------------------------------------------------------------------------------------------------------------
# In a browser

PRESS = """
const found = {title: document.title, scripts: document.scripts.length, picture: document.images[0].naturalWidth, orders: []};
const table = document.querySelectorAll("table")[1], heads = [...table.tHead.rows[0].cells];
const note = () => found.orders.push([heads.map(head => head.getAttribute("aria-sort")),
                                      [...table.tBodies[0].rows].map(row => row.cells[0].textContent.slice(6)).join(" ")]);
for (const column of [0, 1, 1, 2, 2, 3, 4, 4, 4]) {
  const button = heads[column].querySelector("button");
  button.focus();
  if (document.activeElement !== button) console.error("cannot be reached with the keyboard");
  button.click();
  note();
}
fetch("http://127.0.0.1:9/").catch(() => found.refused = true).finally(() => {
  const text = document.createElement("pre");
  text.id = "found";
  text.textContent = JSON.stringify(found);
  document.body.append(text);
});
"""


@pytest.mark.slow
def test_sorts_in_a_browser_without_an_error(written, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not browser:
        pytest.skip("no Chromium here")
    own = written[0].replace("script-src ", f"script-src {report.policy_hash(PRESS)} ", 1)
    (tmp_path / "page.html").write_text(own.replace("</body>", f"<script>{PRESS}</script>\n</body>"), encoding="utf-8")
    try:
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-sync",
                "--disable-background-networking",
                "--disable-component-update",
                "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=5000",
                "--dump-dom",
                (tmp_path / "page.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium does not answer here")
    if done.returncode:
        pytest.skip(f"Chromium does not run here: {done.stderr[-200:]}")
    found = json.loads(unescape(re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert found["title"] == EVIL and found["scripts"] == 2 and found["picture"] == 280
    up, down, no = "ascending", "descending", None
    assert found["orders"] == [
        [[up, no, no, no, no], "1 2 3 9 10"],  # text, but 9 before 10 and s like S
        [[no, up, no, no, no], "1 10 9 2 3"],
        [[no, down, no, no, no], "9 10 1 2 3"],  # empty cells come last in both orders
        [[no, no, up, no, no], "3 2 10 1 9"],
        [[no, no, down, no, no], "1 10 2 3 9"],
        [[no, no, no, up, no], "1 10 2 3 9"],
        [[no, no, no, no, up], "9 3 2 10 1"],
        [[no, no, no, no, down], "3 9 10 2 1"],  # numbers, text, empty
        [[no, no, no, no, no], "10 9 2 1 3"],
    ]  # as before
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console and all("127.0.0.1:9" in line and "Content Security Policy" in line for line in console), console
    assert found["refused"]  # the test's own fetch, and nothing else
