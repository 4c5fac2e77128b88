"""atlas.html: its data against the arrays that went in, and the page itself in a headless browser."""

import base64
import io
import json
import math
import os
import re
import time

import numpy as np
import pytest
from conftest import check_quiet
from PIL import Image
from synthetic import brains

import predict
from analysis.export import read_style_table
from analysis.quality import measure_quality
from data.subjects import Scan
from report import atlas as atlas_module
from report.atlas import Atlas, Measure, PointSet, Tab, View, view_content, write_quality_atlas

SIDE, W_DIM = 32, 8
HOSTILE = "<script>window.pwned = 1</script>"
COUNTS = {"AD": 40, "NC": 30, f"real {HOSTILE}": 5}


def smooth_slices(rng, count):
    """uint8 [count, SIDE, SIDE]: gradients and discs, each different."""
    y, x = np.mgrid[-1 : 1 : 1j * SIDE, -1 : 1 : 1j * SIDE]
    a, b, c, r = rng.uniform(-1, 1, (4, count, 1, 1))
    disc = 90 / (1 + np.exp(20 * (np.hypot(x - a / 2, y - b / 2) - 0.3 - r / 5)))
    return np.uint8(np.clip(80 + 40 * (a * x + b * y) + 30 * c + disc, 0, 255))


class Example:
    """A page of two tabs, the first with a map and one over three epochs, and what went into it."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.path, self.atlas, sets, moving = os.path.join(folder, "atlas.html"), Atlas(SIDE), [], []
        self.pixels, self.w, self.area = [], [], []
        for k, (name, count) in enumerate(COUNTS.items()):
            pixels, w, area = smooth_slices(rng, count), rng.normal(k, 1, (count, W_DIM)), rng.uniform(500, 2500, count)
            cells = self.atlas.add_slices(pixels)
            facts = {"area": area, "distance": rng.random(count), "cluster": np.arange(count) % 2, "row": self.atlas.add_styles(w)}
            real = name.startswith("real")
            facts |= {"file": [f"{HOSTILE}_{i}.jpeg" for i in range(count)], "age": [None, *range(60, 59 + count)]} if real else {}
            about = {"class": name[:2], "run": "model/both", "trained": "last, 1 kimg", "seed": 0, "w_dim": W_DIM, "real": real}
            sets.append(PointSet(name, rng.random((count, 2)), cells, facts, about))
            moving.append(
                PointSet(name, rng.random((3, count, 2)), cells, {"number": range(count)}, about | {"fixed": True, "epoch": 9})
            )
            self.pixels, self.w, self.area = [*self.pixels, *pixels], [*self.w, *w], [*self.area, *area]
        self.line = self.atlas.add_slices(smooth_slices(rng, 7))
        self.atlas.lines["model/both"], self.atlas.playgrounds = {"0 1": self.line}, {"model/both": "play ground.html"}
        self.sets = np.repeat(np.arange(len(sets)), list(COUNTS.values()))
        measures = [Measure("AUC", 0.7, "0.70 (0.60 to 0.80)", 0.6, 0.8, 0.5, "chance")]
        measures.append(Measure("undefined", math.nan, "", math.nan, math.nan, math.nan, ""))
        views = [View(None, sets, "A note."), View([(0, 0.5), (4, 0.6), (9, 0.7)], moving)]
        tabs = [Tab(f"first {HOSTILE}", "It carries little.", measures, views), Tab("second", "It carries more.", [], views[:1])]
        self.atlas.write(self.path, f"Atlas {HOSTILE}", tabs, {"about": HOSTILE})
        with open(self.path, encoding="utf-8") as file:
            self.text = file.read()
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', self.text, re.DOTALL)[1])
        self.view = self.data["tabs"][0]["views"][0]

    def sprite(self):
        content, columns = self.atlas.sprite()
        return np.asarray(Image.open(io.BytesIO(content)), int), columns

    def cell(self, number):
        image, columns = self.sprite()
        top, left = SIDE * (number // columns), SIDE * (number % columns)
        return image[top : top + SIDE, left : left + SIDE]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return Example(str(tmp_path_factory.mktemp("atlas")))


# ---------------------------------------------------------------------------------------------------------------------
# Data


def test_cells_of_the_sprite_hold_the_slices_that_were_added(example):
    for i in (0, 39, 40, 74):
        difference = np.abs(example.cell(example.view["cell"][i]) - example.pixels[i].astype(int))
        assert difference.mean() < 2 and difference.max() < 20  # JPEG; the slices differ by far more
    others = [np.abs(example.cell(i) - example.pixels[i + 1].astype(int)).mean() for i in range(10)]
    assert min(others) > 4


def test_larger_slices_are_averaged_to_the_side_of_the_sprite():
    atlas, pixels = Atlas(8), np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    assert list(atlas.add_slices(pixels[:1])) == [0] and list(atlas.add_slices(pixels[1:])) == [1, 2]
    means = pixels.reshape(3, 8, 4, 8, 4).mean((2, 4))
    assert np.abs(np.concatenate(atlas.images) - means).max() <= 0.51


def test_positions_keep_their_proportions_and_point_upwards():
    points = np.array([[10.0, 0.0], [30.0, 5.0], [20.0, 10.0]])
    atlas = Atlas(8)
    cells = atlas.add_slices(np.zeros((3, 8, 8), np.uint8))
    view = view_content(View(None, [PointSet("AD", points, cells, {}, {})]))
    np.testing.assert_allclose(view["x"], [[0, 1, 0.5]])
    np.testing.assert_allclose(view["y"], [[0.5, 0.25, 0]])


def test_page_escapes_names_and_allows_only_its_own_script(example):
    assert HOSTILE not in example.text and example.text.count("<script") == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', example.text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert not re.search(r"(src|href)=\"(?!data:)", example.text)


def test_page_of_2000_slices_takes_less_than_5_mb(tmp_path):
    rng, atlas = np.random.default_rng(0), Atlas(64)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    pixels = np.clip(rng.normal(120, 40, (2000, 64, 64)) * (np.hypot(x, y * 0.8) < 0.6), 0, 255)  # noisier than any brain
    smooth = (pixels + np.roll(pixels, 1, 1) + np.roll(pixels, 1, 2) + np.roll(pixels, (1, 1), (1, 2))) / 4
    facts = {"number": range(2000), "area": rng.uniform(0, 3000, 2000), "row": atlas.add_styles(rng.normal(size=(2000, 256)))}
    of_set = PointSet("AD", rng.random((2000, 2)), atlas.add_slices(np.uint8(smooth)), facts, {"class": "AD", "w_dim": 256})
    atlas.write(tmp_path / "atlas.html", "Atlas", [Tab("AD", "", [], [View(None, [of_set])])])
    assert (tmp_path / "atlas.html").stat().st_size < 5e6


def test_predict_writes_an_atlas_of_every_map(models, slices_dir, tmp_path, capsys, monkeypatch, quick):
    flags = [
        "--model_dir",
        models,
        "--plot_umap",
        "True",
        "--AD_dir",
        "AD",
        "--NC_dir",
        "NC",
        "--umap",
        "method=pca",
        "num_styles=20",
    ]
    monkeypatch.setattr(atlas_module, "SHOWN", 12)
    flags += ["--dataset_dir", slices_dir, "--atlas", "True"]
    assert predict.main([*flags, "--output_dir", str(tmp_path), "--device", "cpu"]) == 0
    assert str(tmp_path / "atlas.html") in capsys.readouterr().out
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "atlas.html").read_text(), re.DOTALL)[1])
    (pair, _), _, (real,) = (tab["views"] for tab in data["tabs"])
    assert [of["name"] for of in pair["sets"]] == ["AD", "NC"] and len(pair["set"]) == 24
    assert [of["name"] for of in real["sets"]] == ["AD", "NC", "real AD", "real NC"] and len(real["set"]) == 12 + 12 + 9 + 11
    files = real["facts"]["file"]
    assert files[:24] == [None] * 24 and files[24] == "AD/100_0.png" and files[33] == "NC/100_0.png"
    assert len({*real["facts"]["drawn"], *real["cell"]}) == 88


@pytest.mark.slow
def test_quality_atlas_outlines_as_many_slices_as_recall_and_precision_leave_out(tmp_path):
    real, fake, path = brains(30, 1), brains(24, 2), tmp_path / "atlas.html"
    quality = measure_quality(real, fake)
    names = [f"{'AD' if i % 2 else 'NC'}/{i}_1.png" for i in range(30)]
    write_quality_atlas(path, quality, real, fake, names, names[:24], "pca", table={"3": Scan("3", "ann", age=71.0, sex="F")})
    text = path.read_text()
    (view,) = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["tabs"][0]["views"]
    assert [of["name"] for of in view["sets"]] == ["real AD", "real NC", "generated"]
    missed = np.array(view["facts"]["missed"])
    assert quality.size == 12 and len(missed) == 24  # as many of each as the halves of the real set hold
    assert missed[:12].mean() == pytest.approx(1 - quality.values["recall"])
    assert missed[12:].mean() == pytest.approx(1 - quality.values["precision"])
    assert f"{missed[:12].sum()} of 12 real slices" in text
    assert [view["facts"]["file"][i] for i, age in enumerate(view["facts"]["age"]) if age is not None] == ["AD/3_1.png"]
    alone = measure_quality(real, fake, groups=np.zeros(30, int))  # of one person: there are no balls
    write_quality_atlas(path, alone, real, fake, names, names[:24], "pca")
    (view,) = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])["tabs"][0]["views"]
    assert not any(view["facts"]["missed"][alone.size :])


# ---------------------------------------------------------------------------------------------------------------------
# The page in a browser


@pytest.fixture
def page(browser, example):
    """The example's page, just opened, as a `Page`."""
    browser.get("file://" + example.path)
    browser.set_script_timeout(20)
    browser.execute_async_script("const done = arguments[0], wait = () => window.atlas ? done() : setTimeout(wait, 20); wait()")
    yield Page(browser)
    check_quiet(browser)
    assert not browser.execute_script("return window.pwned")


class Page:
    """The opened page, by what a user does and sees."""

    def __init__(self, browser):
        self.browser = browser

    def __call__(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def position(self, i):
        return self("return atlas.position(arguments[0])", int(i))

    def mouse(self, path, hold=False):
        """Move the mouse along positions on the map, with the button held down from the first to the last if `hold`."""
        from selenium.webdriver import ActionChains

        canvas = self.find("#map")
        actions = ActionChains(self.browser, duration=0)
        for k, (x, y) in enumerate(path):
            actions.move_to_element_with_offset(canvas, round(x - canvas.size["width"] / 2), round(y - canvas.size["height"] / 2))
            if hold and k == 0:
                actions.click_and_hold()
        (actions.release() if hold else actions).perform()

    def click(self, i):
        self.mouse([self.position(i)], hold=True)

    def keys(self, selector, *keys):
        self.find(selector).send_keys(*keys)

    def canvas(self, selector):
        """Grey levels [SIDE, SIDE] of a canvas."""
        levels = self(
            "const c = document.querySelector(arguments[0]);"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, k) => k % 4 === 0)",
            selector,
        )
        return np.array(levels).reshape(SIDE, SIDE)

    def downloaded(self, name):
        path, deadline = self.browser.downloads / name, time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return path


def isolated(example, page):
    """A point with no other within a few pixels, so that the mouse has to find it."""
    places = np.array([page.position(i) for i in range(len(example.sets))])
    distances = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(places))
    return distances.min(1).argsort()[::-1]


@pytest.mark.slow
def test_hover_shows_the_slice_of_the_point_and_what_is_known_of_it(example, page):
    order = isolated(example, page)
    for i in (*order[:3], next(i for i in order if example.sets[i] == 2)):
        page.mouse([page.position(i)])
        assert np.abs(page.canvas("#slice") - example.cell(example.view["cell"][i])).max() <= 3  # two decoders of JPEG
        facts = page.find("#facts").text
        assert f"{round(example.area[i]):,}" in facts.replace("\n", " ") and list(COUNTS)[example.sets[i]] in facts


@pytest.mark.slow
def test_map_shows_every_point_in_the_colour_of_its_set_and_no_hidden_one(example, page):
    names = [
        page(f"return getComputedStyle(document.documentElement).getPropertyValue('--{name}')") for name in ("AD", "NC", "other")
    ]
    colours = [[int(name.strip()[k : k + 2], 16) for k in (1, 3, 5)] for name in names]

    def painted():
        """RGBA of the canvas where each point is, once the next frame is drawn."""
        return np.array(
            page.browser.execute_async_script(
                "const done = arguments[1], ratio = devicePixelRatio; requestAnimationFrame(() => requestAnimationFrame(() => done("
                "arguments[0].map((i) => { const [x, y] = atlas.position(i);"
                "return [...map.getContext('2d').getImageData(Math.round(x * ratio), Math.round(y * ratio), 1, 1).data]; }))));",
                chosen,
            )
        )

    order = [int(i) for i in isolated(example, page) if i != page("return atlas.state.current")]
    chosen = [i for k in range(3) for i in [i for i in order if example.sets[i] == k][:3]]
    found = painted()
    assert np.abs(found[:, :3] - np.array(colours)[example.sets[chosen]]).max() <= 3  # stored multiplied by their opacity
    assert found[:, 3].min() > 190
    page.find("#legend button:nth-child(1)").click()
    assert ((painted()[:, 3] > 190) == (example.sets[chosen] > 0)).all()
    x, y = page.position(chosen[-1])
    page("atlas.state.left = 12; redraw()")
    assert page.position(chosen[-1]) == pytest.approx([x + 12, y])
    assert ((painted()[:, 3] > 190) == (example.sets[chosen] > 0)).all()


@pytest.mark.slow
def test_arrow_keys_go_to_the_nearest_slice_in_their_direction_and_enter_pins(example, page):
    from selenium.webdriver import Keys

    begin = page("return atlas.state.current")
    x, y = page.position(begin)
    page.keys("#map", Keys.ARROW_RIGHT)
    places = np.array([page.position(i) for i in range(len(example.sets))])
    dx, dy = (places - [x, y]).T
    allowed = (dx > 0.01) & (np.abs(dy) <= 2 * dx)
    expected = np.where(allowed, dx + 2 * np.abs(dy), np.inf).argmin()
    assert page("return atlas.state.current") == expected != begin
    assert list(COUNTS)[example.sets[expected]] in page.find("#spoken").get_attribute("textContent")
    page.keys("#map", Keys.ENTER, Keys.ARROW_LEFT, Keys.ENTER)
    assert page("return atlas.state.pinned")[0] == expected and len(page("return atlas.state.pinned")) == 2
    page.keys("#map", Keys.ESCAPE)
    assert not page.find("#pinned").is_displayed()


@pytest.mark.slow
def test_two_pinned_slices_show_their_difference_and_the_line_between_their_clusters(example, page):
    order = isolated(example, page)
    a = next(i for i in order if example.view["facts"]["cluster"][i] == 1)
    b = next(i for i in order if example.view["facts"]["cluster"][i] == 0)
    page.click(a)
    page.click(b)
    assert page("return atlas.state.pinned") == [a, b]
    first, second = (page.canvas(f"#pinned figure:nth-child({k}) canvas") for k in (1, 2))
    for shown, i in ((first, a), (second, b)):
        assert np.abs(shown - example.cell(example.view["cell"][i])).max() <= 3
    largest = max(1, np.abs(second - first).max())  # red is full where B is brighter, and pale by the share where it is darker
    expected = np.where(second > first, 255, 255 * (1 - np.abs(second - first) / largest))
    assert np.abs(page.canvas("#pinned figure:nth-child(3) canvas") - expected).max() <= 1
    line = [page.canvas(f"#line figure:nth-child({k}) canvas") for k in (1, 7)]
    for shown, cell in zip(line, (example.line[-1], example.line[0])):  # from cluster 1 to cluster 0: the other way round
        assert np.abs(shown - example.cell(cell)).max() <= 3
    link = page.find("#pinned figure:nth-child(2) a").get_attribute("href")  # in the playground
    address, w = link.split("#class=0&w=")
    assert address.endswith("/play%20ground.html")
    assert (np.frombuffer(base64.urlsafe_b64decode(w + "=" * (-len(w) % 4)), "<f2") == np.float16(example.w[b])).all()
    page.find("#line-csv").click()
    rows = read_style_table(page.downloaded("line.csv"))
    ends = np.float16(example.w[a]).astype(float), np.float16(example.w[b]).astype(float)
    for k, row in enumerate(rows):
        np.testing.assert_allclose(row.w, ends[0] + k / 6 * (ends[1] - ends[0]), rtol=1e-6, atol=1e-6)
    assert len(rows) == 7


@pytest.mark.slow
def test_lasso_counts_and_measures_what_it_encloses(example, page):
    places = np.array([page.position(i) for i in range(len(example.sets))])
    left, top, right, bottom = np.round([*np.quantile(places, 0.2, 0), *np.quantile(places, 0.75, 0)])
    page.mouse([(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 1)], hold=True)
    x, y = places.T
    depth = np.min([x - left, right - x, y - top, bottom - y], 0)  # inside of the lasso, whose corners are whole pixels
    rows = np.array(page("return atlas.state.selected"))
    assert 10 < len(rows) < 60 and set(np.flatnonzero(depth > 2)) <= set(rows) <= set(np.flatnonzero(depth > -2))
    area = np.array(example.area)[rows]
    half = 1.96 * area.std(ddof=1) / math.sqrt(len(rows))
    table = page.find("#counts").text
    for number in (area.mean(), area.mean() - half, area.mean() + half):
        assert f"{round(number):,}" in table
    for k, name in enumerate(COUNTS):
        count = (example.sets[rows] == k).sum()
        assert not count or f"{name} {count}" in table
    mean = np.mean([example.cell(example.view["cell"][i]) for i in rows], 0)
    assert np.abs(page.canvas("#selected figure:nth-child(1) canvas") - mean).max() <= 3
    page.find("#csv").click()
    saved = read_style_table(page.downloaded("selection.csv"))
    np.testing.assert_allclose([row.w for row in saved], np.float16([example.w[i] for i in rows]), rtol=1e-6)
    assert {row.set for row in saved} == {list(COUNTS)[k] for k in example.sets[rows]}


@pytest.mark.slow
def test_tabs_by_keys_show_their_own_sentence_and_numbers(example, page):
    from selenium.webdriver import Keys

    assert "It carries little." in page.find("main").text and "0.70 (0.60 to 0.80)" in page.find("main").text
    page.keys("#tab-0", Keys.ARROW_RIGHT)
    assert page("return document.activeElement.id") == "tab-1"
    assert "It carries more." in page.find("main").text and "It carries little." not in page.find("main").text
    page.keys("#tab-1", Keys.ARROW_RIGHT)
    assert page.find("#tab-0").get_attribute("aria-selected") == "true"


@pytest.mark.slow
def test_legend_hides_a_set_from_the_map_the_mouse_and_the_selection(example, page):
    page.find("#legend button:nth-child(1)").click()
    page.find("#select-all").click()
    assert page("return atlas.state.selected") == np.flatnonzero(example.sets != 0).tolist()
    i = next(i for i in isolated(example, page) if example.sets[i] == 0)
    page.mouse([page.position(i)])
    assert page("return atlas.state.current") != i


@pytest.mark.slow
def test_slider_moves_points_between_epochs(example, page):
    page.find("#views button:nth-child(2)").click()

    def at(epoch):
        page("const e = document.getElementById('epoch'); e.value = arguments[0]; e.dispatchEvent(new Event('input'))", epoch)
        return np.array([page.position(i) for i in range(0, 70, 7)])

    first, half, second, last = at(0), at(0.5), at(1), at(2)
    np.testing.assert_allclose(half, (first + second) / 2, atol=1e-6)
    assert "9, same-class k-NN fraction 70%" in page.find("#epoch-text").text
    moved = np.array(example.data["tabs"][0]["views"][1]["x"])
    scale = np.ptp(last[:, 0]) / np.ptp(moved[2, 0:70:7])
    np.testing.assert_allclose(last[:, 0] - first[:, 0], scale * (moved[2] - moved[0])[0:70:7], atol=1e-3)
    page.find("#play").click()
    deadline = time.monotonic() + 20
    while page("return atlas.state.playing") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert page("return [atlas.state.epoch, atlas.state.playing]") == [2, False]


@pytest.mark.slow
def test_colour_by_age_leaves_unknown_ages_grey_and_counts_them(example, page):
    page("const c = document.getElementById('colour'); c.value = 'age'; c.dispatchEvent(new Event('change'))")
    legend = page.find("#legend").text
    assert "60" in legend and "63" in legend and "unknown (71)" in legend
