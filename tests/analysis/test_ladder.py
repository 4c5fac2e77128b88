"""The ladder on slices whose classes differ in what a probe of pixels sees, and on slices that do not differ."""

import numpy as np
import pytest

from analysis import bootstrap as bootstrap_module
from analysis import encoder as encoder_module
from analysis import ladder as ladder_module
from analysis.encoder import Encoder
from analysis.ladder import ladder, pool_pixels, rung
from utils import CLASSES


def test_rung_of_a_planted_difference_and_of_none(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)
    rng, groups, is_ad = np.random.default_rng(0), np.repeat(np.arange(24), 10), np.repeat([True, False], 120)
    names = [f"{'AD' if ad else 'NC'}/{group}_{i % 10}.png" for i, (group, ad) in enumerate(zip(groups, is_ad))]
    people = rng.normal(size=24).repeat(10)
    found = rung(people + 3 * is_ad, is_ad, groups, names)
    assert found["p"] == 1 / 200 and found["auc"].value > 0.9 and found["position"]["position-stratified"].low > 0.5
    values = [rung(rng.normal(size=24).repeat(10), is_ad, groups, names)["p"] for _ in range(40)]
    assert 0.3 < np.mean(values) < 0.7 and np.mean(np.array(values) <= 0.025) <= 0.125  # the null
    assert 0.7 < found["auc"].detectable < 0.9  # for 12 and 12 people: about 0.5 + (1.96 + 0.84) * sqrt(25 / (12 * 12 * 12)) = 0.84


def test_pixels_of_both_classes_are_pooled_in_order():
    slices = {name: np.full((300, 64, 64), value, np.uint8) for name, value in zip(CLASSES, (10, 200))}
    pixels = pool_pixels(slices)
    assert pixels.shape == (600, 32 * 32) and (pixels[:300] == 10).all() and (pixels[300:] == 200).all()


@pytest.mark.parametrize("contrast", [0, 60])
def test_ladder_finds_what_is_there_on_every_rung(conditional, monkeypatch, contrast):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 40)
    rng = np.random.default_rng(1)
    monkeypatch.setattr(ladder_module, "find_encoder", lambda model, *_: encoder_module.untrained_encoder(model, 3))

    def draw(people):
        y, x = np.mgrid[-1:1:32j, -1:1:32j]
        disc = np.hypot(x, y) < 0.5
        brightness = {name: 100 + contrast * (name == "AD") + rng.normal(0, 10, (people, 1)) for name in CLASSES}
        slices = {name: of.repeat(3, 0)[:, :, None] * disc for name, of in brightness.items()}
        return {name: np.uint8(np.clip(of + rng.normal(0, 5, of.shape), 0, 255)) for name, of in slices.items()}

    train, held_out, generated = draw(20), draw(12), draw(20)
    groups = np.repeat([f"people {i}" for i in range(24)], 3)
    names = [f"{'AD' if i < 36 else 'NC'}/{i // 3}_{i % 3}.png" for i in range(72)]
    rungs = ladder([conditional], train, held_out, generated, groups, names)
    assert list(rungs) == [
        "pixels, 32x32",
        "an untrained encoder",
        "w, encoded by all-conditional",
        "w, encoded by all-conditional, fitted to generated slices",
    ]
    for found in rungs.values():
        assert found["auc"].value > 0.9 and found["p"] <= 0.01 if contrast else found["p"] > 0.025
    assert isinstance(encoder_module.untrained_encoder(conditional), Encoder)
