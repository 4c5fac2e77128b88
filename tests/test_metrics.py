"""Each metric against a second way of computing it, and against the fault that it is there to see."""

import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from analysis import distances
from utils import UserError


def brains(count, seed, side=32):
    """uint8 [count, side, side]: bright discs of random shape, place and brightness with two dark ventricles, textured."""
    rng = np.random.default_rng(seed)

    def draw(low, high):
        return rng.uniform(low, high, (count, 1, 1))

    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    x, y = x - draw(-0.1, 0.1), y - draw(-0.1, 0.1)
    image = draw(120, 190) * (np.hypot(x / draw(0.55, 0.8), y / draw(0.7, 0.9)) < 1)
    gap, width, height = draw(0.12, 0.3), draw(0.05, 0.15), draw(0.15, 0.4)
    image *= 1 - 0.8 * (np.hypot((np.abs(x) - gap) / width, y / height) < 1)
    image *= 1 + 0.15 * np.sin(x * draw(8, 14) + draw(0, 6)) * np.sin(y * draw(8, 14) + draw(0, 6))
    return np.clip(image + 4 * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)


def blurred(images, times):
    """Binomial filter over rows and columns, `times` times."""
    images = images.astype(float)
    for _ in range(times):
        for axis in (1, 2):
            images = (np.roll(images, 1, axis) + 2 * images + np.roll(images, -1, axis)) / 4
    return images.round().astype(np.uint8)


def noisy(images, sigma):
    noise = np.random.default_rng(5).normal(0, sigma, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def few(images, modes):
    """As many images, but only `modes` different ones."""
    return images[np.arange(len(images)) % modes]


def increases(*values):
    return all(a < b for a, b in zip(values, values[1:]))


@pytest.fixture(scope="module")
def extract():
    return distances.Features()


@pytest.fixture(scope="module")
def measured(extract):
    """{name: values against the same 150 real slices}: `half` is as real as they are, the others are faulty."""
    real, half = brains(150, 0), brains(150, 1)
    sets = {
        "half": half,
        "blur1": blurred(half, 1),
        "blur3": blurred(half, 3),
        "noise25": noisy(half, 25),
        "noise60": noisy(half, 60),
        "modes30": few(half, 30),
        "modes5": few(half, 5),
        "copy": real,
    }
    real = metrics.describe(real, extract)
    return {name: metrics.compare(real, metrics.describe(images, extract), 150, 150) for name, images in sets.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Every metric under the fault that it is there to see


def test_nothing_between_halves_of_one_set(measured):
    half = measured["half"]
    assert abs(half["kid_x1000"]) < 3 * half["kid_x1000_error"]
    assert half["precision"] > 0.85 and half["recall"] > 0.85 and half["coverage"] > 0.9
    assert 0.8 < half["density"] < 1.2
    assert half["spectrum_db"] < 0.5
    assert abs(half["ms_ssim"] - half["ms_ssim_real"]) < 0.1


@pytest.mark.parametrize(
    "metric, ladders",
    [
        ("kid_x1000", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"), ("half", "modes30", "modes5"))),
        ("swd_x1000", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"))),
        ("swd_x1000_32", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"))),
        ("spectrum_db", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"))),
    ],
)
def test_distances_grow_with_the_fault(measured, metric, ladders):
    for ladder in ladders:
        values = [measured[name][metric] for name in ladder]
        assert increases(*values) and values[-1] > 2 * values[0], (ladder, values)


def test_precision_and_density_see_bad_slices_but_no_missing_ones(measured):
    for ladder in (("blur3", "blur1", "half"), ("noise60", "noise25", "half")):
        assert increases(*(measured[name]["density"] for name in ladder)), ladder
    assert measured["noise60"]["precision"] < 0.5 * measured["half"]["precision"]
    assert measured["modes30"]["precision"] > 0.8


def test_recall_and_coverage_see_missing_modes(measured):
    for metric in ("recall", "coverage"):
        assert increases(*(measured[name][metric] for name in ("modes5", "modes30", "half"))), metric
    assert measured["modes5"]["recall"] < 0.1


def test_ms_ssim_sees_few_modes():
    """Two draws from n modes are the same one with chance 1 / n, and then their similarity is 1."""
    images, rng, found = distances.as_batch(brains(120, 1)), np.random.default_rng(0), {}
    for modes in (120, 4, 2):
        a, b = torch.from_numpy(rng.integers(modes, size=(2, 300)))
        found[modes] = distances.ms_ssim(images[a], images[b]).mean().item()
    assert increases(*found.values())
    assert found[2] > found[120] + 0.3 * (1 - found[120])


def test_a_copied_set_has_no_distance(measured):
    copy = measured["copy"]
    assert copy["swd_x1000"] == 0 and copy["spectrum_db"] == 0 and copy["coverage"] == copy["precision"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# Features


def test_features_take_every_kind_of_image(extract):
    images = brains(20, 0)
    expected = extract(images)
    assert expected.shape == (20, 512) and expected.dtype == torch.float32
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(20))
    scaled = torch.from_numpy(images)[:, None] / 127.5 - 1
    for other in (torch.from_numpy(images), scaled, scaled.double(), scaled.numpy()):
        torch.testing.assert_close(extract(other), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(extract(images[17:]), expected[17:], atol=1e-5, rtol=0)


def test_features_depend_on_the_seed_alone(extract):
    images = brains(3, 0)
    assert torch.equal(distances.Features(seed=0)(images), extract(images))
    assert (distances.Features(seed=1)(images) - extract(images)).abs().max() > 0.01


def test_large_images_are_averaged_down(extract):
    small = torch.from_numpy(brains(3, 0, side=64))
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert extract(small).shape == (3, 2048)
    torch.testing.assert_close(extract(large), extract(small), atol=1e-5, rtol=0)


def test_signal_neither_dies_nor_explodes():
    x = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for layer in distances.random_vgg16(0):
        x = layer(x)
        assert 0.1 < x.square().mean().sqrt() < 10**1.5, layer


def test_inception_without_its_weights_is_one_line(refused, slices_dir, tmp_path):
    offline = {**os.environ, "TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    line = refused(
        "metrics.py",
        "--real",
        slices_dir,
        "--fake",
        slices_dir,
        "--features",
        "inception",
        "--resolution",
        32,
        "--output_dir",
        tmp_path / "out",
        env=offline,
    )
    assert "--features inception" in line and "inception_v3_google-0cc3c7bd.pth" in line and str(tmp_path) in line


# ---------------------------------------------------------------------------------------------------------------------
# KID and PRDC


def mmd_by_loops(x, y):
    def mean(a, b, skip):
        values = [
            (sum(p * q for p, q in zip(u, v)) / len(u) + 1) ** 3
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (skip and i == j)
        ]
        return sum(values) / len(values)

    x, y = x.tolist(), y.tolist()
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_mmd_and_its_jackknife_are_those_of_a_double_loop():
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=rng, dtype=torch.float64) + shift for n, shift in ((17, 0), (23, 0.5)))
    value, error = distances.polynomial_mmd(x, y, blocks=4)
    assert value == pytest.approx(mmd_by_loops(x, y), rel=1e-9)
    parts = [[torch.cat(p[:i] + p[i + 1 :]) for p in (x.tensor_split(4), y.tensor_split(4))] for i in range(4)]
    assert error == pytest.approx(math.sqrt(3 * np.var([mmd_by_loops(*part) for part in parts])), rel=1e-9)


@pytest.mark.parametrize("mean, deviation", [(0, 1), (0.5, 1), (0, 1.5)])
def test_mmd_is_unbiased(mean, deviation):
    """Of N(0, 1) and N(m, s^2): the weighted squares of what their moments differ by, 3 (m)^2 + 3 (m^2 + s^2 - 1)^2 + ..."""
    expected = 3 * mean**2 + 3 * (mean**2 + deviation**2 - 1) ** 2 + (mean**3 + 3 * mean * deviation**2) ** 2
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 100, 1, generator=rng, dtype=torch.float64) for _ in range(400)]
    values = [distances.polynomial_mmd(x, mean + deviation * y, blocks=2)[0] for x, y in draws]
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / math.sqrt(len(values)))
    assert np.std(values) / math.sqrt(len(values)) < 0.1 * max(expected, 1)


def test_jackknife_error_is_about_the_spread():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 100, 4, generator=rng, dtype=torch.float64) for _ in range(100)]
    found = np.array([distances.polynomial_mmd(x, 1 + y) for x, y in draws])
    assert 0.75 < found[:, 1].mean() / found[:, 0].std() < 1.33


def test_kid_does_not_depend_on_scale_and_offset():
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn(40, 8, generator=rng), 0.3 + torch.randn(40, 8, generator=rng)
    assert distances.kid(100 * real + 7, 100 * fake + 7) == pytest.approx(distances.kid(real, fake), rel=1e-4)
    standard, _ = distances.standardise(100 * real + 7, fake)
    assert standard.mean(0).abs().max() < 1e-6 and standard.square().mean() == pytest.approx(1)


def test_prdc_of_points_on_a_line():
    """Real balls reach 1 to each side; generated ones .5, .5, 2, 2."""
    real, fake = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.5], [1], [10], [12]])
    found = distances.prdc(real, fake, k=1)
    assert found == {"precision": 0.5, "recall": 0.5, "density": (2 + 3) / 4, "coverage": 0.75}


def test_prdc_is_that_of_loops():
    rng = np.random.default_rng(0)
    real, fake, k = rng.normal(size=(30, 2)), rng.normal(1.2, 0.6, size=(25, 2)), 3

    def distance(a, b):
        return math.dist(a, b)

    def radius(points, i):
        return sorted(distance(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    inside = [[distance(f, r) <= radius(real, i) for i, r in enumerate(real)] for f in fake]
    recalled = [any(distance(f, r) <= radius(fake, j) for j, f in enumerate(fake)) for r in real]
    found = distances.prdc(real, fake, k)
    assert found["precision"] == pytest.approx(np.mean([any(row) for row in inside]))
    assert found["recall"] == pytest.approx(np.mean(recalled))
    assert found["density"] == pytest.approx(sum(map(sum, inside)) / (k * len(fake)))
    assert found["coverage"] == pytest.approx(np.mean(np.any(inside, axis=0)))
    assert 0.1 < found["recall"] < 0.9 and 0.1 < found["coverage"] < 0.95  # nothing trivial was compared


def test_prdc_of_equals():
    points = np.random.default_rng(0).normal(size=(1200, 2))  # more than one chunk
    found = distances.prdc(points[:600], points[600:])
    assert found["density"] == pytest.approx(1, abs=0.1)
    assert found["coverage"] == pytest.approx(1 - 0.5**5, abs=0.03)  # eq. 9 of Naeem et al. 2020


# ---------------------------------------------------------------------------------------------------------------------
# Sliced Wasserstein, spectrum, MS-SSIM


def test_pyramid_takes_images_apart_and_keeps_them_whole():
    images = torch.rand(2, 1, 64, 64)
    bands = distances.laplacian_pyramid(images)
    assert [band.shape[-1] for band in bands] == [64, 32, 16]
    whole = bands[-1]
    for band in bands[-2::-1]:
        up = torch.zeros_like(band)
        up[:, :, ::2, ::2] = 4 * whole
        whole = band + distances.smooth(up)
    torch.testing.assert_close(whole, images)
    flat = distances.laplacian_pyramid(torch.full((1, 1, 64, 64), 0.5))
    assert flat[0][..., 4:-4, 4:-4].abs().max() < 1e-6 and (flat[-1] - 0.5).abs().max() < 1e-6


def test_patches_are_cut_out_of_the_image():
    image = torch.arange(20.0 * 20).view(1, 1, 20, 20)
    patches = distances.draw_patches(image, np.random.default_rng(0))
    assert patches.shape == (1, 128, 49)
    corner = patches[0, :, 0]
    rows, columns = corner // 20, corner % 20
    assert rows.min() == columns.min() == 0 and rows.max() == columns.max() == 13
    offsets = (20 * torch.arange(7)[:, None] + torch.arange(7)).flatten()
    assert torch.equal(patches[0], corner[:, None] + offsets)


def test_sliced_wasserstein_in_one_dimension():
    """There every direction is +-1, so it is the mean distance of sorted values: of U(0, 1) and a coin, by hand too."""
    uniform = (torch.arange(10000.0)[:, None] + 0.5) / 10000
    coin = (torch.arange(10000)[:, None] % 2).float()
    rng = np.random.default_rng
    # Standardised, the uniform is sqrt(3) (2 u - 1) and the coin +-1: the integral of |sqrt(3) v - 1| over v in (0, 1).
    expected = 1 / (2 * math.sqrt(3)) + (math.sqrt(3) - 1) ** 2 / (2 * math.sqrt(3))
    assert distances.sliced_wasserstein(uniform, coin, rng(0)) == pytest.approx(expected, rel=1e-3)
    assert distances.sliced_wasserstein(uniform, 5 * uniform.flip(0) - 2, rng(0)) == pytest.approx(0, abs=1e-5)


def test_sliced_wasserstein_sees_an_angle():
    """Equal marginals, correlated or not: along (cos t, sin t) the deviations are sqrt(1 + r sin 2t) and 1."""
    rng, r = np.random.default_rng(0), 0.8
    z = torch.from_numpy(rng.standard_normal((2, 20000, 2)))
    mixed = z[0] @ torch.linalg.cholesky(torch.tensor([[1, r], [r, 1]], dtype=torch.float64)).T
    angles = np.linspace(0, np.pi, 1001)
    expected = np.abs(np.sqrt(1 + r * np.sin(2 * angles)) - 1).mean() * math.sqrt(2 / math.pi)
    assert distances.sliced_wasserstein(mixed, z[1], rng) == pytest.approx(expected, rel=0.05)


def test_spectrum_of_a_sinusoid_and_of_noise():
    x = torch.arange(64.0) / 64
    wave = 0.5 * torch.cos(2 * math.pi * 8 * x).expand(1, 1, 64, 64)
    power = distances.radial_power(wave)
    assert power.shape == (1, 32) and power.argmax() == 7
    y, x = np.meshgrid(np.fft.fftfreq(64, 1 / 64), np.fft.fftfreq(64, 1 / 64))
    on_ring = (np.rint(np.hypot(x, y)) == 8).sum()
    assert power[0, 7].item() == pytest.approx(0.5**2 / 2 * 64**2 / on_ring, rel=1e-4)
    assert power[0, torch.arange(32) != 7].max() < 1e-9
    torch.testing.assert_close(distances.radial_power(wave.mT), power)
    noise = 0.3 * torch.randn(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(distances.radial_power(noise).mean(0), torch.full((16,), 0.09).double(), rtol=0.06, atol=0)


def test_twice_the_contrast_is_six_decibel():
    noise = torch.randn(50, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    gap = distances.spectrum_db(distances.radial_power(noise)) - distances.spectrum_db(distances.radial_power(noise / 2))
    torch.testing.assert_close(gap, torch.full((16,), 20 * math.log10(2)).double(), atol=1e-3, rtol=0)


def ssim_by_windows(a, b, scales):
    """MS-SSIM of two pictures in [0, 1] by a loop over windows in float64."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    weights, product = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales]), 1
    for scale in range(scales):
        terms = []
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                term = (2 * (window * (p - mp) * (q - mq)).sum() + 9e-4) / (vp + vq + 9e-4)
                terms.append(term * (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4) if scale == scales - 1 else term)
        product *= max(np.mean(terms), 0) ** (weights[scale] / weights.sum())
        a, b = (image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)) for image in (a, b))
    return product


@pytest.mark.parametrize("side, scales", [(32, 2), (64, 3)])
def test_ms_ssim_is_that_of_a_loop(side, scales):
    images = brains(2, 0, side)
    for other in (images[1], noisy(images[:1], 20)[0], blurred(images[:1], 2)[0]):
        a, b = (distances.as_batch(image[None]) for image in (images[0], other))
        assert distances.ms_ssim(a, b).item() == pytest.approx(ssim_by_windows(images[0] / 255, other / 255, scales), abs=1e-4)


def test_ms_ssim_of_equals_is_one_and_of_opposites_none():
    images = distances.as_batch(brains(4, 0, side=256))
    torch.testing.assert_close(distances.ms_ssim(images, images), torch.ones(4))
    assert distances.ms_ssim(images, -images).max() < 0.2


# ---------------------------------------------------------------------------------------------------------------------
# Memorisation


@pytest.mark.parametrize("copies", [0, 30, 100])
def test_share_of_copies(copies):
    train, real, fake = brains(300, 0), brains(200, 1), brains(100, 2)
    rng = np.random.default_rng(0)
    taken = rng.permutation(300)[:copies]
    fake[:copies] = noisy(train[taken], 3)
    fake[:copies:2] = fake[:copies:2, :, ::-1]  # every other one mirrored
    found = distances.memorisation(real, fake, train)
    assert found.share == pytest.approx(copies / 100, abs=0.04)
    np.testing.assert_array_equal(found.nearest[:copies], taken)
    assert found.mirrored[:copies:2].all() and not found.mirrored[1:copies:2].any()


def test_blur_is_no_copy():
    train, real = brains(300, 0), brains(200, 1)
    assert distances.memorisation(real, blurred(brains(100, 2), 3), train).share <= 0.03


def test_nearest_is_that_of_a_loop():
    train, images = brains(80, 0).astype(float), brains(5, 1).astype(float)
    relative, rows, mirrored = distances.nearest(images.astype(np.uint8), train.astype(np.uint8), count=7)
    for i, image in enumerate(images):
        found = sorted(
            (np.sqrt(((train[j] - shown) ** 2).sum()), j, mirror)
            for j in range(80)
            for mirror, shown in ((False, image), (True, image[:, ::-1]))
        )
        assert (rows[i], mirrored[i]) == found[0][1:]
        assert relative[i].item() == pytest.approx(found[0][0] / np.mean([distance for distance, *_ in found[:7]]), rel=1e-6)


def test_held_out_slices_have_to_be_held_out():
    train = brains(30, 0)
    with pytest.raises(UserError, match="not in the training set"):
        distances.memorisation(train[:10], brains(10, 1), train)


# ---------------------------------------------------------------------------------------------------------------------
# The scripts


def write(folder, images):
    os.makedirs(folder)
    for i, image in enumerate(images):
        Image.fromarray(image).save(os.path.join(folder, f"{i}.png"))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Plain folders real, fake, train of 32x32 PNGs; fake holds three slices of train, mirrored."""
    folder = tmp_path_factory.mktemp("metrics")
    train, fake = brains(60, 0), brains(24, 2)
    fake[:3] = train[10:13, :, ::-1]
    return {
        name: write(folder / name / "deep", images) for name, images in (("real", brains(30, 1)), ("fake", fake), ("train", train))
    }


def test_evaluate_gives_plain_floats():
    real, fake = brains(30, 1), brains(24, 2)
    values = metrics.evaluate(real, fake, brains(40, 0))
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert {"kid_x1000", "precision", "swd_x1000_32", "swd_x1000_16", "floor_kid_x1000", "memorised"} <= set(values)
    assert values["swd_x1000"] == pytest.approx((values["swd_x1000_32"] + values["swd_x1000_16"]) / 2)
    assert values == metrics.evaluate(real, fake, brains(40, 0))
    assert "memorised" not in metrics.evaluate(real, fake)
    assert "floor_kid_x1000" not in metrics.evaluate(real[:8], fake)
    with pytest.raises(UserError, match="one size"):
        metrics.evaluate(real, brains(24, 2, side=64))


def test_script_prints_and_writes(folders, tmp_path, script):
    done = script(
        "metrics.py",
        "--real",
        folders["real"],
        "--fake",
        folders["fake"],
        "--train",
        folders["train"],
        "--resolution",
        32,
        "--output_dir",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("24 generated against 30 real slices at 32x32, vgg16\n")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    values = written["values"]
    assert metrics.table(values) in done.stdout
    assert values["memorised"] == pytest.approx(3 / 24, abs=1.5 / 24)
    assert (written["real"], written["fake"], written["flags"]["resolution"]) == (30, 24, 32)
    for name in ("metrics.png", "nearest.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 500 and np.asarray(picture.convert("L")).std() > 20


def test_data_set_folders_draws_and_damage(slices_dir, tmp_path, capsys):
    real = metrics.load("--real", slices_dir, "AD", 32)
    assert real.shape == (9, 32, 32) and len(metrics.load("--real", slices_dir, "all", 32)) == 20
    drawn = metrics.load("--real", slices_dir, "AD", 32, count=4, seed=1)
    assert len(np.unique(drawn, axis=0)) == 4 and all((real == one).all((1, 2)).any() for one in drawn)
    folder = write(tmp_path / "some", brains(3, 0))
    (tmp_path / "some" / "bad.png").write_bytes(b"no picture")
    assert len(metrics.load("--fake", folder, "all", 32)) == 3
    assert "1 unreadable left out: bad.png" in capsys.readouterr().err


def test_bad_input_is_one_line(folders, slices_dir, tmp_path, refused):
    real, fake = folders["real"], folders["fake"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.png").write_bytes(b"no picture")
    flags = ["--resolution", "32", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert "--fake" in refused("metrics.py", "--real", real, "--fake", tmp_path / "none", *flags)
    five, above = write(tmp_path / "five", brains(5, 0)), os.path.dirname(slices_dir)
    for expected, more in {
        "--real: no slices in": ["--real", str(tmp_path / "empty"), "--fake", fake],
        "--fake .*no readable slice": ["--real", real, "--fake", str(tmp_path / "bad")],
        "5 generated slices are too few": ["--real", real, "--fake", five],
        "--resolution 32": ["--real", real, "--fake", fake, "--resolution", "64"],
        "--train .*did you mean": ["--real", real, "--fake", fake, "--train", above],
        "--num_images": ["--real", real, "--fake", fake, "--num_images", "5"],
    }.items():
        with pytest.raises(UserError, match=expected) as refusal:
            metrics.main([*flags, *more])
        assert "\n" not in str(refusal.value) and "--dataset_dir" not in str(refusal.value)
