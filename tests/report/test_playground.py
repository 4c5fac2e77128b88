"""playground.html: what it draws, encodes and saves in a headless browser, against PyTorch."""

import io
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import torch
from conftest import NETWORK, ROOT, check_quiet, read_image
from PIL import Image

import predict
from analysis import areas, named_directions
from analysis import encoder as encoder_module
from analysis.encoder import find_encoder, train_encoder, untrained_encoder
from analysis.export import read_style_table
from analysis.latents import Directions, layers_from
from analysis.models import Model, draw_z, load_model, style_vectors, synthesize
from analysis.named_directions import NamedDirection, measure_quantities
from data.decode import pad_and_resize
from data.phantom_anatomy import draw_subject, render, slice_tissue
from modules import build_generator
from report.playground import LATENTS, find_playgrounds, write_playground
from report.report import Section, write_report
from utils import RESOLUTIONS

HOSTILE = "<script>window.pwned = 1</script>"
EFFECTS = {"brightness": (10.0, 3.0), "brain size": (-1.5, 0.5)}


VALUES = {"position": (88.3, 12.5), "age": (74.6, 7.25), "sex": (0.4, 0.49)}  # mean, standard deviation


def untrained(resolution, num_classes, name="thin", values=()):
    """A Model with few channels and bright slices; weights are those of a file that `models.share` has written."""
    torch.manual_seed(resolution)
    sizes = {"resolution": resolution, "channel_base": 1024, "channel_max": 10, "num_classes": num_classes, "values": list(values)}
    networks = build_generator(NETWORK | sizes).eval().requires_grad_(False)
    for block in networks["generator"].blocks:
        block.image_bias.fill_(0.1)
    networks["mapping"].w_mean.normal_(0, 0.3)
    networks.load_state_dict({key: x.half().float() for key, x in networks.state_dict().items()})
    for k, name_of_value in enumerate(values):
        mean, std = VALUES[name_of_value]
        networks["mapping"].embedding.mean[k], networks["mapping"].embedding.std[k] = mean, std
        networks["mapping"].examples[..., k] = torch.linspace(mean - 2 * std, mean + 2 * std, 512).clamp(0).floor()
    labels = [0, 1] if num_classes else [None]
    return Model(name, networks["mapping"], networks["generator"], ["AD", "NC"], labels, f"model/{name}", values=tuple(values))


def write_page(path, model, encoder, named=(), view=None):
    rng = np.random.default_rng(0)
    vectors = torch.linalg.qr(torch.from_numpy(rng.normal(size=(model.mapping.w_dim, 2))))[0].T
    principal = Directions(vectors, np.array([0.3, 0.1]), np.array([0.5, 0.25]), np.zeros(2), np.zeros(2))
    write_playground(str(path), model, encoder, named, principal, view=view)
    return principal


class Example:
    """The page of a conditional model, and what went into it."""

    def __init__(self, folder):
        self.path, self.folder = folder / "playground.html", folder
        self.model = untrained(64, 2, f"both {HOSTILE}", VALUES)
        self.encoder = train_encoder(self.model)
        self.named = [NamedDirection(name, np.float16(np.linspace(-0.5, k, 16)), 0.8, EFFECTS) for k, name in enumerate(EFFECTS)]
        self.named.append(NamedDirection("ventricle area", np.zeros(16), 0.05, EFFECTS))
        self.principal = write_page(self.path, self.model, self.encoder, self.named)
        self.text = self.path.read_text()

    def style(self, state):
        """w [1, w_dim] of a state of the page."""
        mapping, share = self.model.mapping, (state["class"] + 1) / 2
        if state["w"]:
            w = torch.tensor([state["w"]]) + state["class"] * (mapping.w_mean[1] - mapping.w_mean[0])
        else:
            z, told = draw_z(state["latent"] + 1, mapping.z_dim, 0)[-1:], [np.nan if x is None else x for x in state["values"]]
            w = torch.lerp(*(mapping(z, torch.tensor([[label, *told]])) for label in (0.0, 1.0)), share)
        w = torch.lerp(torch.lerp(*mapping.w_mean, share), w, state["psi"])
        moved = sum(k * one.vector for k, one in zip(state["named"], self.named))
        steps = torch.tensor(state["principal"]) * torch.from_numpy(self.principal.deviation)
        return (w + torch.from_numpy(np.float64(moved)) + steps @ self.principal.vectors).float()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SLICES": 256, "HELD_OUT": 128, "STEPS": 30}.items():
            patch.setattr(encoder_module, name, value)
        return Example(tmp_path_factory.mktemp("playground"))


# ---------------------------------------------------------------------------------------------------------------------
# Data


@pytest.mark.slow
def test_page_of_the_bundled_model_takes_less_than_4_mb(tmp_path):
    model = load_model(os.path.join(ROOT, "models", "all-conditional"), "cpu")
    write_page(tmp_path / "playground.html", model, find_encoder(model))
    assert 3e6 < (tmp_path / "playground.html").stat().st_size < 4e6


@pytest.mark.slow
def test_page_escapes_names_and_allows_no_connection(example):
    assert HOSTILE not in example.text and example.text.count("<script") == 3
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', example.text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; worker-src blob:; style-src &#39;sha256-")
    assert "connect-src" not in policy and "unsafe" not in policy and not re.search(r"(src|href)=\"(?!data:)", example.text)


@pytest.mark.slow
def test_quantities_of_which_w_tells_little_have_no_slider(example):
    sliders = re.findall(r'<label for="named-\d">(.*?) <span>(.*?)</span>', example.text)
    assert sliders == [("brightness", "R² 0.80"), ("brain size", "R² 0.80")]
    assert ">0.05<" in example.text and "\N{MINUS SIGN}1.5 \N{PLUS-MINUS SIGN} 0.5" in example.text


def test_report_links_the_page(tmp_path):
    section = Section("Playground", pages=[(str(tmp_path / "play ground.html"), "the generator itself.")])
    page, _ = write_report(str(tmp_path), "", {}, [section])
    with open(page) as file:
        assert '<a href="play%20ground.html">play ground.html</a>: the generator itself.' in file.read()


@pytest.mark.slow
def test_pages_are_found_by_the_weights_that_they_hold(example, tmp_path):
    shutil.copy(example.path, tmp_path / "both_playground.html")
    (tmp_path / "playground.html").write_text("no page of ours")
    other = untrained(64, 2, "other")
    assert find_playgrounds(str(tmp_path), [other, example.model]) == {example.model.folder: "both_playground.html"}


def test_predict_writes_the_page(models, tmp_path, capsys, monkeypatch, quick):
    for name, value in {"SLICES": 64, "HELD_OUT": 32, "MOVED": 8}.items():
        monkeypatch.setattr(named_directions, name, value)
    run = str(shutil.copytree(os.path.join(models, "NC"), tmp_path / "NC"))  # it gets an encoder, and is other tests', too
    flags = "--playground True --num_images 1 --device cpu".split()
    assert predict.main(["--model_dir", run, "--output_dir", str(tmp_path), *flags]) == 0
    assert str(tmp_path / "playground.html") in capsys.readouterr().out
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "playground.html").read_text(), re.DOTALL)[1])
    assert data["network"]["num_classes"] == 0 and data["run"] == run


# ---------------------------------------------------------------------------------------------------------------------
# The page in a browser


class Page:
    """The opened page, by what a user does and sees."""

    def __init__(self, browser, path, fragment=""):
        self.browser = browser
        browser.get("about:blank")
        browser.set_script_timeout(60)
        browser.get(f"file://{path}{fragment}")
        self.settle()

    def __call__(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition):
        deadline = time.monotonic() + 60
        while not (found := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found

    def settle(self):
        """Wait until the slice is drawn at full size."""
        self.wait(lambda: self("return Boolean(window.playground && shown.now?.last && shown.now.id === requests)"))

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def draw(self, **changes):
        """(grey levels [R, R], w of the coarse layers) of a state."""
        code = "playground.draw('test', arguments[0]).then((a) => arguments[1]([[...a.levels], [...a.ws[0]]]))"
        levels, w = self.browser.execute_async_script(code, self.state(**changes))
        return np.array(levels).reshape(-1, round(len(levels) ** 0.5)), np.array(w)

    def state(self, **changes):
        return {**self("return fresh()"), **changes}

    def slide(self, name, value):
        self("const e = element(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))", name, value)
        self.settle()

    def canvas(self, selector):
        """RGB [height, width, 3]."""
        code = "const c = document.querySelector(arguments[0]), { width, height } = c;"
        width, *levels = self(code + "return [width, ...c.getContext('2d').getImageData(0, 0, width, height).data]", selector)
        return np.array(levels).reshape(-1, width, 4)[:, :, :3]

    def give(self, path, drop=False):
        """Choose a file, or drop it; returns what the page says of it."""
        self.find("#file").send_keys(str(path))
        if drop:
            code = (
                "const moved = new DataTransfer(); moved.items.add(element('file').files[0]); element('file').value = ''; tell('');"
            )
            self(code + "document.dispatchEvent(new DragEvent('drop', { dataTransfer: moved, cancelable: true }))")
        ended = self.wait(lambda: (text := self.find("#message").text) and not text.endswith("reading") and text)
        self("element('file').value = ''; tell('')")
        return ended

    def downloaded(self, name):
        path = self.browser.downloads / name
        self.wait(path.exists)
        return path


@pytest.fixture
def page(browser, example):
    """The example's page, just opened."""
    yield Page(browser, example.path)
    check_quiet(browser)
    assert not browser.execute_script("return window.pwned")


@pytest.mark.slow
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_page_draws_what_pytorch_draws(browser, tmp_path, resolution):
    model = untrained(resolution, 2 * (resolution in (64, 256, 1024)))
    write_page(tmp_path / "playground.html", model, untrained_encoder(model))
    page, w = Page(browser, tmp_path / "playground.html"), torch.randn(1, 16)
    given = {"w": w[0].tolist(), "class": 0}
    for noise, name in ((0, "fixed"), (-1, "none")):
        levels, _ = page.draw(noise=noise, **given)
        expected = synthesize(model, w, name)[0].astype(int)
        assert expected.std() > 10 and np.abs(levels - expected).max() <= 2
    other = []
    for block in model.generator.blocks:
        for style in block.styles:
            side = style.fixed_noise.shape[-1]
            rng = torch.Generator().manual_seed(2 * side + style.conv.up + 3 * 4096)
            other.append(torch.randn(1, 1, side, side, generator=rng))
    assert np.abs(page.draw(noise=3, **given)[0] - synthesize(model, w, other)[0].astype(int)).max() <= 2
    if not model.is_conditional:
        second = style_vectors(model.mapping, draw_z(3, 16, 0))[0][2]
        np.testing.assert_allclose(page.draw(latent=2)[1], second, rtol=1e-4, atol=1e-5)
        starts = [layers_from(side, 2 * int(np.log2(resolution)) - 2).start for side in (4, 16, 64) if side <= resolution]
        for k, start in enumerate(starts):  # style mixing
            ws = w[:, None].repeat(1, model.generator.num_ws, 1)
            ws[:, start : (*starts, None)[k + 1]] = second
            levels, _ = page.draw(mixed=2, layers=[int(i == k) for i in range(len(starts))], **given)
            assert np.abs(levels - synthesize(model, ws)[0].astype(int)).max() <= 2
            assert (levels != synthesize(model, w)[0]).mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"latent": 0},
        {"latent": LATENTS - 1, "class": 1},
        {"latent": 17, "class": 0.3, "psi": 0.6},
        {"latent": 17, "named": [1.5, -2], "principal": [0.5, -3]},
        {"latent": 3, "values": [75, None, 1]},
        {"latent": 3, "values": [None, 91, None], "class": 0.5},
        {"w": [0.25] * 16, "class": -0.4, "psi": 0.5, "named": [0, 1]},
    ],
)
def test_style_vectors_are_those_of_the_same_controls_in_python(example, page, changes):
    state = page.state(**changes)
    np.testing.assert_allclose(page.draw(**changes)[1], example.style(state)[0], rtol=1e-3, atol=1e-3)  # directions are float16


@pytest.mark.slow
def test_sliders_move_the_slice_and_the_address_brings_it_back(browser, example, page):
    before = page.canvas("#now")
    page.find("#next").click()
    for name, value in (("class-0", 0.5), ("psi-0", 0.8), ("named-1", 2), ("principal-0", -1)):
        page.slide(name, value)
    page.slide("values-1", 80)
    for selector in ("#another", "[data-key=values][type=checkbox]", "[data-key=layers][data-index='1']"):
        page.find(selector).click()
        page.settle()
    changed = {
        "class": 0.5,
        "values": [None, 80, 0],
        "psi": 0.8,
        "noise": 1,
        "named": [0, 2],
        "principal": [-1, 0],
        "layers": [0, 1, 0],
    }
    assert page("return state") == page.state(latent=1, **changed)
    expected, w = page.draw(latent=1, **changed)
    now = page.canvas("#now")
    assert (now == expected[:, :, None]).all() and (now != before).any()
    page.find("#pin").click()
    page.slide("named-1", -2)
    address = page.wait(lambda: "named=0%2C-2" in (url := browser.current_url) and url)
    again = Page(browser, example.path, "#" + address.split("#")[1])
    page.wait(lambda: page("return Boolean(shown.pinned?.last)"))
    assert (again.canvas("#pinned") == now).all() and (again.canvas("#now") != now).any()
    assert again.find("#named-1").get_attribute("value") == "-2"
    garbled = Page(browser, example.path, "#latent=1e9&psi=x&named=,9&w=%F0&noise=-7&values=1e9,x&layers=7,1&pin=pin%3D1")
    values = [garbled("return told[0].high"), garbled("return told[1].low"), None]
    expected = {"latent": LATENTS - 1, "psi": 0, "named": [0, 3], "noise": -1, "values": values, "layers": [0, 1, 0]}
    assert garbled("return state") == garbled.state(**expected)


@pytest.mark.slow
def test_difference_map_is_that_of_the_pinned_slice_with_its_scale(page):
    page.find("#pin").click()
    page.slide("class-0", 1)
    now, pinned = page.canvas("#now")[:, :, 0], page.canvas("#pinned")[:, :, 0]
    largest = np.abs(now - pinned).max()  # red is full where now is brighter, and pale by the share where it is darker
    assert largest > 5 and page.find("#scale").text.split() == [f"\N{MINUS SIGN}{largest}", f"+{largest}", "grey", "levels"]
    expected = np.where(now > pinned, 255, 255 * (1 - np.abs(now - pinned) / largest))
    assert np.abs(page.canvas("#difference")[:, :, 0] - expected).max() <= 1
    page.find("#unpin").click()
    assert not page.find("#difference").is_displayed()


@pytest.mark.slow
def test_strip_goes_from_the_pinned_slice_to_that_of_now(example, page):
    page.find("#pin").click()
    page.slide("class-0", 1)
    page.slide("named-0", 2)
    a, b = example.style(page.state()), example.style(page("return state"))
    expected = synthesize(example.model, torch.cat([torch.lerp(a, b, k / 6) for k in range(7)])).astype(int)
    assert np.abs(expected[6] - expected[0]).max() > 5
    page.wait(lambda: np.abs(page.canvas("#strip")[:, :, 0] - np.concatenate(expected, 1)).max() <= 2)
    page.find("#unpin").click()
    assert not page.find("#strip").is_displayed() and not page.find("#measured").is_displayed()


@pytest.mark.slow
@pytest.mark.parametrize("view", sorted(areas.AMOUNT))
def test_areas_are_those_that_python_measures(browser, tmp_path, view):
    rng, slices = np.random.default_rng(0), [np.zeros((64, 64)), np.random.default_rng(1).integers(0, 256, (64, 64))]
    for k, position in enumerate((5.0, 20.0)):
        person = draw_subject(np.random.default_rng(k), "AD")
        drawn = render(person, slice_tissue(person, position, view), position, rng, view)
        slices.append(pad_and_resize(Image.fromarray(drawn), 64))
    slices, model = np.stack([np.asarray(one, np.uint8) for one in slices]), untrained(256, 0)
    write_page(tmp_path / "playground.html", model, untrained_encoder(model), view=view)
    expected = measure_quantities(slices, None) | areas.measure_areas(slices, view)
    page = Page(browser, tmp_path / "playground.html")
    for k, pixels in enumerate(slices.repeat(4, 1).repeat(4, 2)):  # whose means of squares need no rounding
        code = "playground.ask({ encode: Uint8ClampedArray.from(arguments[0]) }).then((a) => arguments[1](a.measured))"
        found = browser.execute_async_script(code, pixels.ravel().tolist())
        assert found == pytest.approx({name: values[k] for name, values in expected.items()}, rel=1e-6, abs=1e-6)
    page.find("#pin").click()
    page.wait(lambda: page("return Boolean(shown.pinned?.measured)"))
    page.slide("psi-0", 0.2)
    now, pinned = page("return [shown.now.measured, shown.pinned.measured]")
    rows = [row.text.replace("\N{MINUS SIGN}", "-") for row in page.browser.find_elements("css selector", "#measured tbody tr")]
    assert len(rows) == len(expected) == len({row.split(",")[0] for row in rows} & set(expected))
    for row in rows:
        name, *numbers = row.split(",")[0], *map(float, row.split()[-3:])
        assert numbers == pytest.approx([pinned[name], now[name], now[name] - pinned[name]], abs=0.51)


@pytest.mark.slow
def test_saved_png_and_csv_are_the_slice_that_python_draws(example, page):
    page.slide("named-0", 1)
    name = re.sub(r"[<>/]", "_", f"{example.model.name}_0")
    for kind in ("png", "csv"):  # one after the other: a newer drawing overtakes an older one
        page.find(f"#{kind}").click()
        page.downloaded(f"{name}.{kind}")
    (row,) = read_style_table(page.downloaded(f"{name}.csv"))
    assert row.run == example.model.folder and row.set == "latent 0, AD, position 88, age 75, sex F, moved"
    np.testing.assert_allclose(row.w, example.style(page.state(named=[1, 0]))[0], rtol=1e-3, atol=1e-3)
    drawn = synthesize(example.model, torch.from_numpy(row.w)[None])[0].astype(int)
    saved = read_image(page.downloaded(f"{name}.png"))[:, :, 0].astype(int)
    assert np.abs(saved - drawn).max() <= 1


def encoded_file(pixels, **options):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, **options)
    return content.getvalue()


@pytest.mark.slow
def test_own_slices_are_encoded_and_judged_as_by_python(example, page, monkeypatch):
    monkeypatch.setattr(encoder_module, "pick_dtype", lambda *_: torch.float32)  # on any processor
    rng, answers = np.random.default_rng(0), []
    generated = synthesize(example.model, example.style(page.state(latent=5)))[0]
    for k, pixels in enumerate((generated, generated[8:60], rng.integers(0, 256, (100, 80), np.uint8))):
        (example.folder / f"{k}.png").write_bytes(encoded_file(pixels, format="PNG"))
        answers.append(page.give(example.folder / f"{k}.png", drop=k == 1))
        page.settle()
        read = predict.read_targets(str(example.folder / f"{k}.png"), 64, "--encode").images
        encoded = example.encoder.encode(read)
        w = page("return state.w")
        np.testing.assert_allclose(w, example.encoder.style_vectors(encoded.points)[0], atol=0.02)
        np.testing.assert_allclose(page("return read(write(state)).w"), np.float16(w), rtol=1e-3, atol=1e-7)
        outside = float(example.encoder.outside(example.model, read, encoded)[0])
        rms = np.square(page.canvas("#now")[:, :, 0] - read[0].astype(float)).mean() ** 0.5
        assert f"error of {rms:.1f} grey" in answers[-1]
        assert float(re.search(r"outside: ([\d.]+)", answers[-1])[1]) == pytest.approx(outside, rel=0.02, abs=0.01)
        assert ("refused" in answers[-1]) == (outside > 1)
        assert np.abs(page.canvas("#pinned")[:, :, 0] - read[0].astype(int)).max() <= 1
    assert "refused" not in answers[0] and "refused" in answers[2]
    page.find("#leave").click()
    page.settle()
    assert (page.canvas("#now")[:, :, 0] == page.draw()[0]).all()


@pytest.mark.slow
def test_files_that_are_no_slice_get_one_line(example, page):
    huge = encoded_file(np.zeros((8, 8), np.uint8), format="PNG")
    huge = huge[:16] + (20_000).to_bytes(4, "big") * 2 + huge[24:]
    colour = np.zeros((64, 64, 3), np.uint8)
    colour[:, :, 0] = np.arange(64) * 4
    files = {
        "notes.txt": (b"no slice", "neither a PNG nor a JPEG"),
        "empty.png": (b"", "neither a PNG nor a JPEG"),
        "one.png": (encoded_file(np.zeros((1, 1), np.uint8), format="PNG"), "1 x 1 pixels"),
        "huge.png": (huge, "20000 x 20000 pixels"),
        "photo.jpg": (encoded_file(colour, format="JPEG"), "a colour picture"),
        "deep.png": (encoded_file(np.zeros((64, 64), np.uint16), format="PNG"), "16 bits a pixel"),
        "black.png": (encoded_file(np.zeros((64, 64), np.uint8), format="PNG"), "one grey level only"),
        "torn.jpg": (encoded_file(colour, format="JPEG")[:15], "a damaged JPEG"),
    }
    for name, (content, problem) in files.items():
        (example.folder / name).write_bytes(content)
        said = page.give(example.folder / name)
        assert said.startswith(f"{name}: ") and problem in said and "\n" not in said
    assert page("return state.w") is None


@pytest.mark.slow
def test_policy_refuses_every_connection(browser, example):
    Page(browser, example.path)
    code = (
        "const done = arguments[0]; addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));"
        "fetch('data:,x').then(() => done('connected'), () => {})"
    )
    assert browser.execute_async_script(code) == "connect-src"
    code = (
        "const source = `fetch('data:,x').then(() => postMessage('connected'), () => postMessage('refused'))`;"
        "new Worker(URL.createObjectURL(new Blob([source]))).onmessage = ({ data }) => arguments[0](data)"
    )
    assert browser.execute_async_script(code) == "refused"
    browser.get_log("browser"), browser.get_log("performance")


@pytest.mark.slow
def test_page_fits_a_telephone_and_names_its_controls(browser, page):
    telephone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", telephone)
    try:
        page.find("#pin").click()
        page("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert page.find("#values-2").accessible_name.startswith("sex")
    unnamed = "return [...document.querySelectorAll('input, select')].filter((one) => !one.labels.length).map((one) => one.id)"
    assert page(unnamed) == []
