"""The reader test: which slices it shows and what it gives away, and the page in a headless browser, by keys alone."""

import base64
import csv
import io
import json
import re
import time
from collections import Counter

import numpy as np
import pytest
from conftest import check_quiet, make_once
from PIL import Image

from analysis.models import generate, load_model
from data.subjects import Scan
from dataset import Slices
from report import quiz
from report.quiz import choose_real, draw_quiz, independence

COUNT = 5


class Page:
    """A page as it is stored: its text, the cells of its picture [N, R, R], and its decoded key."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.text = file.read()
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', self.text, re.DOTALL)[1])
        (content,) = re.findall(r'src="data:image/png;base64,([^"]+)"', self.text)
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        side, columns = self.data["side"], self.data["columns"]
        cells = np.asarray(image).reshape(-1, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
        self.key = json.loads(base64.b64decode(self.data["key"]))
        self.cells = cells[: len(self.key)]


def draw(model, slices_dir, folder, seed=0, count=COUNT, table=None):
    draw_quiz(model, f"{folder}/quiz.html", count, slices_dir, table, seed)
    return f"{folder}/quiz.html"


@pytest.fixture(scope="module")
def path(tmp_path_factory, models, slices_dir):
    """A page of the conditional model: of each class, five real and five generated slices."""
    model = load_model(f"{models}/all-conditional", "cpu")
    return str(make_once(tmp_path_factory, "quiz", lambda folder: draw(model, slices_dir, folder)) / "quiz.html")


@pytest.mark.slow
def test_page_shows_as_many_real_as_generated_slices_and_knows_which(path, conditional, slices_dir):
    page, slices = Page(path), Slices(slices_dir, "all", 32, progress=False)
    kinds = Counter((of["real"], of["class"]) for of in page.key)
    assert kinds == {(real, name): COUNT for real in (True, False) for name in ("AD", "NC")}
    named = dict(zip(slices.names, slices[np.arange(len(slices))]))
    for cell, of in zip(page.cells, page.key, strict=True):
        if of["real"]:
            expected = named[of["slice"]]
        else:
            number = int(of["slice"].removeprefix("seed 0, number "))
            *_, images = generate(conditional, number + 1, 0, label=int(of["class"] == "NC"), start=number // 16)
            expected = images[number % 16]
        np.testing.assert_array_equal(cell, expected)
    assert len({of["slice"] for of in page.key}) == 4 * COUNT


@pytest.mark.slow
def test_page_gives_nothing_away(path, conditional, slices_dir, tmp_path):
    page = Page(path)
    shown = page.text.replace(page.data["key"], "")
    assert page.data.keys() == {"side", "columns", "count", "key"} and not re.search(r"\w+_\d+\.png|seed 0", shown)
    orders = [[of["real"] for of in Page(draw(conditional, slices_dir, tmp_path, seed)).key] for seed in range(4)]
    assert orders[0] == [of["real"] for of in page.key] and len(set(map(tuple, orders))) == 4
    assert all(order != sorted(order) and order[::-1] != sorted(order) for order in orders)


def test_real_slices_are_of_as_many_people_as_there_are():
    groups = np.array(["a"] * 8 + ["b"] * 2 + ["c"])
    for seed in range(5):
        rows = choose_real(groups, 6, np.random.default_rng(seed))
        assert set(groups[rows[:3]]) == {"a", "b", "c"} and set(groups[rows[3:5]]) == {"a", "b"} and groups[rows[5]] == "a"
        assert len(set(rows)) == 6
    assert sorted(choose_real(groups, 100, np.random.default_rng(0))) == list(range(11))


@pytest.mark.parametrize(
    "groups, unit, expected",
    [
        ("abc", "people", "The 3 real slices are of as many people."),
        ("aab", "people", "of 2 people, and slices of one person are not independent: the interval is too narrow."),
        ("aaa", "people", "of 1 person, and slices of one person"),
        ("aab", "scans", "of 2 scans, and whose these are is not known; slices of one person are not independent"),
        ("abc", "slices", "file names do not tell all scans; slices of one person are not independent"),
    ],
)
def test_page_says_whether_slices_are_independent(groups, unit, expected):
    assert expected in independence(np.array(list(groups)), unit)


def test_damaged_scans_and_more_slices_than_there_are(models, slices_dir, monkeypatch, tmp_path):
    monkeypatch.setattr(quiz, "find_damaged", lambda pixels, scans: {"100": "black"})
    table = {str(image): Scan(str(image), "ann") for image in range(100, 120)}
    page = Page(draw(load_model(f"{models}/AD", "cpu"), slices_dir, tmp_path, count=50, table=table))
    real = sorted(of["slice"] for of in page.key if of["real"])
    assert real == [f"AD/{i}_0.png" for i in range(101, 109)] and len(page.key) == 16
    assert "The 8 real slices are of 1 person, and slices of one person are not independent" in page.text


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0, 7, 10, 17])
def test_reader_answers_by_keys_and_gets_the_share_with_its_interval(browser, path, wrong):
    from scipy.stats import binomtest
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    def shown(selector):
        return browser.find_element("css selector", selector).text

    page = Page(path)
    answers = [of["real"] != (i < wrong) for i, of in enumerate(page.key)]
    browser.get("file://" + path)
    browser.set_script_timeout(20)
    browser.execute_async_script(
        "const done = arguments[0], wait = () => document.activeElement.id ? done() : setTimeout(wait, 20); wait()"
    )
    press("r", Keys.ENTER)  # the first does nothing: it has not begun
    before = set()
    for i, answer in enumerate(answers):
        assert shown("#number") == f"slice {i + 1} of 20"
        levels = browser.execute_script(
            "const c = document.getElementById('slice');"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, k) => k % 4 === 0)"
        )
        np.testing.assert_array_equal(np.reshape(levels, (32, 32)), page.cells[i])
        before.add(re.sub(r"\d+", "", browser.execute_script("return document.querySelector('main').outerHTML")))
        if i == 3:  # a slip, taken back; Ctrl is for the browser
            press("r" if not answer else "g", Keys.BACKSPACE)
            browser.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'r', ctrlKey: true}))")
        press("r" if answer else "g")
    assert len(before) == 2  # the first, which has none to go back to, and the others, all alike
    interval = binomtest(20 - wrong, 20).proportion_ci(0.95, method="wilson")
    low, high = (f"{100 * end:.0f}%" for end in interval)
    kind = "more than" if wrong == 0 else "fewer than" if wrong == 17 else "as many as"
    assert f"{20 - wrong} of 20 right, {100 - 5 * wrong}% ({low} to {high}): {kind} by guessing" in shown("#verdict")
    truly = [sum(of["real"] == kind and of["real"] == a for of, a in zip(page.key, answers)) for kind in (True, False)]
    assert [row.split()[1] for row in shown("#shares").split("\n")[1:]] == [str(right) for right in truly]
    assert len(browser.find_elements("css selector", "#mistaken figure")) == wrong
    check_quiet(browser)
    if wrong == 7:
        browser.find_element("id", "csv").click()
        saved, deadline = browser.downloads / "quiz.csv", time.monotonic() + 20
        while not saved.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with open(saved, newline="") as file:
            rows = list(csv.DictReader(file))
        words = {True: "real", False: "generated"}
        assert [(row["slice"], row["truth"], row["answer"]) for row in rows] == [
            (of["slice"], words[of["real"]], words[answer]) for of, answer in zip(page.key, answers)
        ]
        assert all(float(row["seconds"]) >= 0 for row in rows)
