"""Each distance compared with a second way of computing it."""

import math

import numpy as np
import pytest
import torch
from synthetic import blurred, brains, noisy

from analysis import distances
from utils import UserError


def test_constants_of_the_distances():
    assert distances.NEIGHBOURS == 5
    assert (distances.PATCHES, distances.PATCH) == (128, 7)  # Karras et al. 2018 (arXiv:1710.10196), section 5
    assert distances.REPEATS * distances.DIRECTIONS == 512  # there, and in its code: 4 times 128
    assert [width for width in distances.VGG16 if width != "M"] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6  # its table 1, D
    assert (distances.FEATURE_SIDE, distances.NEAREST_SIDE, distances.IDENTICAL) == (64, 64, 1e-5)  # docs/methods.md


@pytest.fixture(scope="module")
def extract():
    return distances.Features()


# ---------------------------------------------------------------------------------------------------------------------
# Features


def test_features_are_the_same_for_every_kind_of_image(extract):
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


def test_features_average_large_images_down(extract):
    small = torch.from_numpy(brains(3, 0, side=64))
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert extract(small).shape == (3, 2048)
    torch.testing.assert_close(extract(large), extract(small), atol=1e-5, rtol=0)


def test_random_vgg16_keeps_the_size_of_its_signal():
    x = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for layer in distances.random_vgg16(0):
        x = layer(x)
        assert 0.1 < x.square().mean().sqrt() < 10**1.5, layer


# ---------------------------------------------------------------------------------------------------------------------
# Standardised KID and PRDC


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


def test_polynomial_mmd_and_its_jackknife_equal_a_double_loop():
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=rng, dtype=torch.float64) + shift for n, shift in ((17, 0), (23, 0.5)))
    value, error = distances.polynomial_mmd(x, y, blocks=4)
    assert value == pytest.approx(mmd_by_loops(x, y), rel=1e-9)
    parts = [[torch.cat(p[:i] + p[i + 1 :]) for p in (x.tensor_split(4), y.tensor_split(4))] for i in range(4)]
    assert error == pytest.approx(math.sqrt(3 * np.var([mmd_by_loops(*part) for part in parts])), rel=1e-9)


@pytest.mark.parametrize("mean, deviation", [(0, 1), (0.5, 1), (0, 1.5)])
def test_polynomial_mmd_is_unbiased(mean, deviation):
    """For N(0, 1) and N(m, s^2) MMD^2 is 3 m^2 + 3 (m^2 + s^2 - 1)^2 + (m^3 + 3 m s^2)^2, from their first three moments."""
    expected = 3 * mean**2 + 3 * (mean**2 + deviation**2 - 1) ** 2 + (mean**3 + 3 * mean * deviation**2) ** 2
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 100, 1, generator=rng, dtype=torch.float64) for _ in range(400)]
    values = [distances.polynomial_mmd(x, mean + deviation * y, blocks=2)[0] for x, y in draws]
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / math.sqrt(len(values)))
    assert np.std(values) / math.sqrt(len(values)) < 0.1 * max(expected, 1)


@pytest.mark.parametrize("counts", [(5, 30), (30, 5)])
def test_polynomial_mmd_of_fewer_features_than_blocks(counts):
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(count, 3, generator=rng, dtype=torch.float64) for count in counts)
    value, error = distances.polynomial_mmd(x, y)
    assert value == pytest.approx(mmd_by_loops(x, y), rel=1e-9)
    assert error == distances.polynomial_mmd(x, y, blocks=min(counts))[1] > 0  # no block is empty


def test_polynomial_mmd_of_two_features_each_has_a_value_and_no_error():
    x, y = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, error = distances.polynomial_mmd(x, y)
    assert value == pytest.approx(mmd_by_loops(x, y), rel=1e-9) and math.isnan(error)


def test_standard_error_hardly_depends_on_the_order_of_the_images():
    """Of the same two sets, in other orders, so in other blocks: with ten blocks it varied by a fifth, with fifty by a tenth."""
    x, y = (
        torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        + torch.tensor([0, 0.5])[:, None, None]
    )
    rng = np.random.default_rng(0)

    def spread(**blocks):
        orders = [(rng.permutation(200), rng.permutation(200)) for _ in range(40)]
        errors = [distances.polynomial_mmd(x[a], y[b], **blocks)[1] for a, b in orders]
        return np.std(errors) / np.mean(errors)

    assert spread() < 0.18 < spread(blocks=10)


@pytest.mark.slow
def test_jackknife_error_matches_the_spread_of_repeated_estimates():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 100, 4, generator=rng, dtype=torch.float64) for _ in range(100)]
    found = np.array([distances.polynomial_mmd(x, 1 + y) for x, y in draws])
    assert 0.75 < found[:, 1].mean() / found[:, 0].std() < 1.33


def test_split_groups_gives_blocks_of_about_equal_size_and_no_group_in_two():
    groups = np.random.default_rng(0).permutation(np.repeat([f"p{i}" for i in range(12)], [9, 9, 5, 5, 5, 4, 4, 4, 3, 2, 1, 1]))
    blocks = distances.split_groups(groups, 4)
    assert sorted(np.concatenate(blocks)) == list(range(52)) and {len(rows) for rows in blocks} == {13}
    assert sum(len(set(groups[rows])) for rows in blocks) == 12


def test_polynomial_mmd_jackknife_leaves_out_whole_groups():
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=rng, dtype=torch.float64) + shift for n, shift in ((12, 0), (18, 0.5)))
    groups = np.array(list("aabbbcabccca"))  # three groups of 4
    value, error = distances.polynomial_mmd(x, y, x_groups=groups)
    assert value == pytest.approx(mmd_by_loops(x, y), rel=1e-9)
    rest = y.tensor_split(3)
    without = [mmd_by_loops(x[groups != name], torch.cat(rest[:i] + rest[i + 1 :])) for i, name in enumerate("abc")]
    assert error == pytest.approx(math.sqrt(2 * np.var(without)), rel=1e-9)
    swapped = distances.polynomial_mmd(y, x, y_groups=groups)
    assert swapped == pytest.approx((value, error), rel=1e-9)  # the measure is symmetric


@pytest.mark.parametrize("groups", ["aaaaaa", "aaaaab"])
def test_polynomial_mmd_has_no_error_where_too_little_is_left_of_the_groups(groups):
    x, y = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, error = distances.polynomial_mmd(x, y, x_groups=list(groups))
    assert value == pytest.approx(mmd_by_loops(x, y), rel=1e-9) and math.isnan(error)


@pytest.mark.slow
def test_jackknife_error_over_people_matches_the_spread_where_their_images_are_alike():
    """40 people with five images each: over images the error is less than two thirds of the spread."""
    rng = torch.Generator().manual_seed(0)
    people, found = np.repeat(np.arange(40), 5), []
    for _ in range(100):
        x = torch.randn(40, 4, generator=rng, dtype=torch.float64).repeat_interleave(5, 0)
        x += 0.3 * torch.randn(x.shape, generator=rng, dtype=torch.float64)
        y = 1 + 0.3 * torch.randn(200, 4, generator=rng, dtype=torch.float64)  # so that x decides the spread
        order = torch.randperm(200, generator=rng)
        found.append([*distances.polynomial_mmd(x[order], y, x_groups=people[order]), distances.polynomial_mmd(x[order], y)[1]])
    value, over_people, over_images = np.array(found).T
    assert 0.75 < over_people.mean() / value.std() < 1.33
    assert over_images.mean() / value.std() < 2 / 3


def with_moments(mean, root, count, seed):
    """Float64 [count, D] whose sample mean and covariance are exactly `mean` [D] and root root' [D, D]."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(count - 1)
    return (q - q.mean(0)) @ root.T + mean


def test_frechet_distance_of_gaussians_in_closed_form():
    a, b = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64)
    turn = torch.linalg.qr(torch.arange(9.0, dtype=torch.float64).view(3, 3) + torch.eye(3, dtype=torch.float64)).Q
    x, y = with_moments(torch.zeros_like(a), turn @ a.diag(), 20, 0), with_moments(2 + 0 * a, turn @ b.diag(), 30, 1)
    assert distances.frechet_distance(x, y) == pytest.approx(3 * 2**2 + (a - b).square().sum().item(), rel=1e-10)
    assert distances.frechet_distance(x, x + 1) == pytest.approx(3, rel=1e-10)


@pytest.mark.parametrize("n, m", [(60, 50), (9, 7)])
def test_frechet_distance_equals_the_trace_of_the_root_of_the_product(n, m):
    """Covariances that do not commute, of fewer images than features, too."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(count, 12)) @ rng.normal(size=(12, 12)) + shift for count, shift in ((n, 0), (m, 1)))
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(s @ t).real.clip(0)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert distances.frechet_distance(torch.from_numpy(x).float(), torch.from_numpy(y).float()) == pytest.approx(expected, rel=1e-4)
    assert distances.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("alike", [False, True])
def test_frechet_error_matches_the_spread_of_repeated_estimates(alike):
    """Over people, whose five images are alike, or over images; blindly, it would be half of that."""
    rng, values, errors, blind = np.random.default_rng(0), [], [], []
    for _ in range(60):
        x = np.repeat(rng.normal(0.5, 1.2, (60, 3)), 5, axis=0) if alike else rng.normal(0.5, 1.2, (300, 3))
        x, y, groups = torch.from_numpy(x), torch.from_numpy(rng.normal(size=(400, 3))), np.repeat(np.arange(60), 5)
        values.append(distances.frechet_distance(x, y))
        errors.append(distances.frechet_error(x, y, groups if alike else None))
        blind.append(distances.frechet_error(x[rng.permutation(300)], y))
    rms = math.sqrt(np.mean(np.square(errors)))
    assert 0.75 < rms / np.std(values) < 1.4
    assert (math.sqrt(np.mean(np.square(blind))) < 0.7 * rms) == alike


def test_frechet_error_needs_two_groups_and_two_images_beside_each():
    x, y = torch.randn(20, 3), torch.randn(30, 3)
    assert math.isnan(distances.frechet_error(x, y, np.zeros(20))) and math.isnan(distances.frechet_error(x[:2], y))
    assert distances.frechet_error(x, y, np.arange(20) // 10) > 0


def test_standardise_uses_the_moments_of_the_real_features_for_both():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(2, 3, (40, 8)), rng.normal(-1, 0.5, (30, 8))
    centred = real - real.mean(0)
    scale = math.sqrt((centred**2).sum() / centred.size)
    for found, expected in zip(distances.standardise(real, fake), (centred / scale, (fake - real.mean(0)) / scale)):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert {x.dtype for x in distances.standardise(*np.float32([real[:30], fake]))} == {torch.float64}


def test_kid_does_not_depend_on_scale_and_offset():
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn(40, 8, generator=rng), 0.3 + torch.randn(40, 8, generator=rng)
    assert distances.kid(100 * real + 7, 100 * fake + 7) == pytest.approx(distances.kid(real, fake), rel=1e-4)
    standard, _ = distances.standardise(100 * real + 7, fake)
    assert standard.mean(0).abs().max() < 1e-6 and standard.square().mean() == pytest.approx(1)


def test_standardise_computes_in_float64():
    x, y = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    for single, double in zip(distances.standardise(x, y), distances.standardise(x.double(), y.double())):
        assert single.dtype == torch.float64 and torch.equal(single, double)


def test_kid_is_the_mmd_of_standardised_features():
    real, fake = np.random.default_rng(3).normal(size=(2, 40, 6)) + np.array([2, 2.5])[:, None, None]
    deviation = math.sqrt(np.square(real - real.mean(0)).mean())
    x, y = (torch.from_numpy((features - real.mean(0)) / deviation) for features in (real, fake))

    def kernel(a, b):
        return (a @ b.T / 6 + 1) ** 3

    within = sum((kernel(a, a).sum() - kernel(a, a).trace()) / (40 * 39) for a in (x, y))
    assert distances.kid(real, fake) == pytest.approx((within - 2 * kernel(x, y).mean()).item(), rel=1e-9)


def test_prdc_of_points_on_a_line_by_hand():
    """The radii of the real balls are all 1, those of the generated ones 0.5, 0.5, 2, 2."""
    real, fake = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.5], [1], [10], [12]])
    found = distances.prdc(real, fake, k=1)
    assert found == {"precision": 0.5, "recall": 0.5, "density": (2 + 3) / 4, "coverage": 0.75}


def test_prdc_equals_loops_over_points():
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
    assert 0.1 < found["recall"] < 0.9 and 0.1 < found["coverage"] < 0.95  # the comparison is not trivial


def test_prdc_of_equal_distributions_has_its_expected_values():
    points = np.random.default_rng(0).normal(size=(1200, 2))  # 600 fakes: more than one chunk of 512
    found = distances.prdc(points[:600], points[600:])
    assert found["density"] == pytest.approx(1, abs=0.1)
    assert found["coverage"] == pytest.approx(1 - 0.5**5, abs=0.03)  # eq. 9 of Naeem et al. 2020


def test_balls_reach_to_other_groups_as_in_a_loop_over_points():
    rng = np.random.default_rng(0)
    real, fake, k = rng.normal(size=(30, 2)), rng.normal(1.2, 0.6, size=(25, 2)), 3
    people = {"real": rng.integers(6, size=30), "fake": rng.integers(5, size=25)}

    def radius(points, groups, i):
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if groups[j] != groups[i])[k - 1]

    inside = [[math.dist(f, r) <= radius(real, people["real"], i) for i, r in enumerate(real)] for f in fake]
    recalled = [any(math.dist(f, r) <= radius(fake, people["fake"], j) for j, f in enumerate(fake)) for r in real]
    found = distances.prdc(real, fake, k, people["real"], [f"person {p}" for p in people["fake"]])
    assert found["precision"] == pytest.approx(np.mean([any(row) for row in inside]))
    assert found["recall"] == pytest.approx(np.mean(recalled))
    assert found["density"] == pytest.approx(sum(map(sum, inside)) / (k * len(fake)))
    assert found["coverage"] == pytest.approx(np.mean(np.any(inside, axis=0)))


def test_slices_of_one_person_do_not_shrink_their_balls():
    """Twenty nearly equal slices of each of 40 people against those of 40 others: by people the values are those of equal
    distributions; by slices, whose nearest neighbours are of the same person, nearly nothing is in a ball."""
    people = np.random.default_rng(0).normal(size=(80, 2))
    slices = np.repeat(people, 20, 0) + np.random.default_rng(1).normal(0, 1e-3, size=(1600, 2))
    groups = np.repeat(np.arange(40), 20)
    by_slices = distances.prdc(slices[:800], slices[800:])
    by_people = distances.prdc(slices[:800], slices[800:], 5, groups, groups)
    single = distances.prdc(people[:40], people[40:], k=1)
    assert max(by_slices[name] for name in ("precision", "recall", "coverage")) < 0.05
    for name in ("precision", "recall", "coverage"):  # the fifth slice of other people is one of the nearest other person
        assert by_people[name] == pytest.approx(single[name], abs=0.05) and by_people[name] > 0.4


def test_prdc_without_other_people_is_not_a_number():
    points = np.random.default_rng(0).normal(size=(40, 2))
    found = distances.prdc(points[:20], points[20:], 5, np.zeros(20))
    assert [math.isnan(found[name]) for name in ("precision", "recall", "density", "coverage")] == [True, False, True, True]
    found = distances.prdc(points[:20], points[20:], 5, np.arange(20), np.repeat(["a", "b"], [17, 3]))
    assert [math.isnan(found[name]) for name in ("precision", "recall", "density", "coverage")] == [False, True, False, False]


def test_prdc_needs_more_slices_than_neighbours():
    few, many = torch.arange(5.0)[:, None], torch.arange(9.0)[:, None]
    for sets in ((few, many), (many, few)):
        with pytest.raises(UserError, match="5 slices are too few: each set needs at least 6"):
            distances.prdc(*sets, k=5)
    assert distances.prdc(many[:6], many[:6], k=5)["coverage"] == 1


def test_prdc_counts_every_chunk_of_generated_images():
    """The first chunk of 512 lies among the real points, the second far from all of them."""
    points = np.random.default_rng(0).normal(size=(1112, 2))
    found = distances.prdc(points[:600], np.concatenate([points[600:], points[:88] + 1000]))
    assert found["precision"] == pytest.approx(512 / 600, abs=0.02)
    assert found["coverage"] > 0.9 and found["recall"] > 0.9


# ---------------------------------------------------------------------------------------------------------------------
# Sliced Wasserstein, spectrum


def test_laplacian_pyramid_can_be_inverted():
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


def test_draw_patches_cuts_them_out_of_the_image():
    image = torch.arange(20.0 * 20).view(1, 1, 20, 20)
    patches = distances.draw_patches(image, np.random.default_rng(0))
    assert patches.shape == (1, 128, 49)
    corner = patches[0, :, 0]
    rows, columns = corner // 20, corner % 20
    assert rows.min() == columns.min() == 0 and rows.max() == columns.max() == 13
    offsets = (20 * torch.arange(7)[:, None] + torch.arange(7)).flatten()
    assert torch.equal(patches[0], corner[:, None] + offsets)


def test_sliced_wasserstein_in_one_dimension_is_the_integral():
    """In one dimension every direction is +-1: the mean distance of sorted values, here of U(0, 1) and of a coin."""
    uniform = (torch.arange(10000.0)[:, None] + 0.5) / 10000
    coin = (torch.arange(10000)[:, None] % 2).float()
    rng = np.random.default_rng
    # Standardised, the uniform is sqrt(3) (2 u - 1) and the coin +-1: the integral of |sqrt(3) v - 1| over v in (0, 1).
    expected = 1 / (2 * math.sqrt(3)) + (math.sqrt(3) - 1) ** 2 / (2 * math.sqrt(3))
    assert distances.sliced_wasserstein(uniform, coin, rng(0)) == pytest.approx(expected, rel=1e-3)
    assert distances.sliced_wasserstein(uniform, 5 * uniform.flip(0) - 2, rng(0)) == pytest.approx(0, abs=1e-5)


def test_sliced_wasserstein_projects_on_512_directions():
    class Counted:
        def __init__(self):
            self.rng, self.rows = np.random.default_rng(0), 0

        def standard_normal(self, shape):
            self.rows += shape[0]
            return self.rng.standard_normal(shape)

    a, b, rng = *torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)), Counted()
    distances.sliced_wasserstein(a, b, rng)
    assert rng.rows == 512


def test_sliced_wasserstein_detects_a_correlation():
    """Equal marginals with correlation r or 0: along (cos t, sin t) the standard deviations are sqrt(1 + r sin 2t) and 1."""
    rng, r = np.random.default_rng(0), 0.8
    z = torch.from_numpy(rng.standard_normal((2, 20000, 2)))
    mixed = z[0] @ torch.linalg.cholesky(torch.tensor([[1, r], [r, 1]], dtype=torch.float64)).T
    angles = np.linspace(0, np.pi, 1001)
    expected = np.abs(np.sqrt(1 + r * np.sin(2 * angles)) - 1).mean() * math.sqrt(2 / math.pi)
    assert distances.sliced_wasserstein(mixed, z[1], rng) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("side", [16, 32])
def test_radial_power_is_that_of_the_whole_plane(side):
    image = np.random.default_rng(0).normal(size=(side, side))
    power = np.abs(np.fft.fft2(image)) ** 2 / side**2
    frequency = np.fft.fftfreq(side, 1 / side)
    ring = np.rint(np.hypot(frequency, frequency[:, None]))
    expected = [power[ring == cycles].mean() for cycles in range(1, side // 2 + 1)]
    np.testing.assert_allclose(distances.radial_power(torch.from_numpy(image)[None, None])[0], expected, rtol=1e-9)


def test_radial_power_of_a_sinusoid_and_of_noise():
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


def test_spectrum_db_rises_by_six_decibels_for_twice_the_contrast():
    noise = torch.randn(50, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    gap = distances.spectrum_db(distances.radial_power(noise)) - distances.spectrum_db(distances.radial_power(noise / 2))
    torch.testing.assert_close(gap, torch.full((16,), 20 * math.log10(2)).double(), atol=1e-3, rtol=0)


def test_spectrum_db_of_a_flat_image_is_the_noise_of_rounding_to_8_bits():
    steps = torch.rand(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    variance = ((steps - steps.round()) / 127.5).square().mean().item()  # of x^2 of uniform x: 0.89 of its mean, over n values
    expected = pytest.approx(10 * math.log10(variance), abs=5 * 10 / math.log(10) * 0.89 / math.sqrt(400_000))
    assert distances.spectrum_db(torch.zeros(3, 1, dtype=torch.float64)).item() == expected


# ---------------------------------------------------------------------------------------------------------------------
# Memorisation


def test_memorisation_counts_images_below_the_first_percentile_of_held_out_ones(monkeypatch):
    held_out = torch.arange(101, dtype=torch.float64).flip(0) / 200 + 0.4  # 0.4, 0.405, ...: the first percentile is 0.405
    fake = torch.tensor([0.3, 0.4049, 0.4051, 0.41, 0.9], dtype=torch.float64)
    rows = torch.zeros(5, dtype=torch.int64)
    planted = iter([(torch.cat([held_out, torch.zeros(20)]), rows, rows), (fake, rows, rows > 0)])  # 20 are in the training set
    monkeypatch.setattr(distances, "fit_neighbours", lambda *_: None)
    monkeypatch.setattr(distances, "nearest_images", lambda *_, **__: next(planted))
    found = distances.memorisation(None, None, None)
    assert found.share.value == 2 / 5 and 0 <= found.share.low < 2 / 5 < found.share.high <= 1
    assert torch.equal(found.held_out, held_out) and torch.equal(found.fake, fake)


def test_memorisation_interval_resamples_generated_images_and_the_groups_of_held_out_ones(monkeypatch):
    held_out, fake = torch.tensor([0.0, 0.9, 0.9, 0.5, 0.5], dtype=torch.float64), torch.full([7], 0.7, dtype=torch.float64)
    rows = torch.zeros(7, dtype=torch.int64)

    def measured(groups):
        planted = iter([(held_out, rows, rows), (fake, rows, rows > 0)])
        monkeypatch.setattr(distances, "fit_neighbours", lambda *_: None)
        monkeypatch.setattr(distances, "nearest_images", lambda *_, **__: next(planted))
        return distances.memorisation(None, None, None, groups=groups)

    found = measured(list("xaabb"))  # with a alone the limit is 0.9, above all of fake; in a quarter of the resamples
    assert found.share == (0, 0, 1)
    found = measured(list("xaaaa"))  # one group: nothing to resample
    assert found.share == (0, 0, 0)
    fake[:3] = 0.3
    found = measured(list("xaaaa"))
    assert found.share.low < found.share.value == 3 / 7 < found.share.high


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("copies", [0, 30, 100])
def test_memorisation_finds_copies_and_if_asked_mirrored_copies(copies, mirror):
    train, real, fake = brains(300, 0), brains(200, 1), brains(100, 2)
    rng = np.random.default_rng(0)
    taken = rng.permutation(300)[:copies]
    fake[:copies] = noisy(train[taken], 3)
    fake[:copies:2] = fake[:copies:2, :, ::-1]  # every second copy is mirrored
    found = distances.memorisation(real, fake, train, mirror=mirror)
    if mirror:
        assert found.share.value == pytest.approx(copies / 100, abs=0.04)
    else:
        assert copies / 200 <= found.share.value <= 0.6 * copies / 100 + 0.04  # a few look like their mirror images
    np.testing.assert_array_equal(found.nearest[1:copies:2], taken[1::2])
    assert not found.mirrored[1:copies:2].any()
    if mirror:
        np.testing.assert_array_equal(found.nearest[:copies:2], taken[::2])
        assert found.mirrored[:copies:2].all()
    else:
        assert not found.mirrored.any()


def test_memorisation_does_not_take_blurred_images_for_copies():
    train, real = brains(300, 0), brains(200, 1)
    assert distances.memorisation(real, blurred(brains(100, 2), 3), train).share.value <= 0.03


@pytest.mark.parametrize("mirror, mean", [(False, 25.5), (True, 13)])
def test_nearest_images_of_grey_levels_in_closed_form(mirror, mean):
    """50 nearest of flat images one level apart: at distances of 1, 2, ... 50 levels, or each also mirrored, 1, 1, ... 25, 25."""
    levels = np.arange(100, 160, dtype=np.uint8)[:, None, None] + np.zeros((1, 8, 8), np.uint8)
    relative, rows, _ = distances.nearest_images(levels[:1] - 1, distances.fit_neighbours(levels), mirror)
    assert rows == 0 and relative.item() == pytest.approx(1 / mean, rel=1e-5)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("count, given", [(7, {"count": 7}), (50, {})])
def test_nearest_images_equals_a_loop(count, given, mirror):
    train, images = brains(80, 0).astype(float), brains(5, 1).astype(float)
    relative, rows, mirrored = distances.nearest_images(
        images.astype(np.uint8), distances.fit_neighbours(train.astype(np.uint8)), mirror, **given
    )
    for i, image in enumerate(images):
        found = sorted(
            (np.sqrt(((train[j] - shown) ** 2).sum()), j, mirrored_copy)
            for j in range(80)
            for mirrored_copy, shown in ((False, image), (True, image[:, ::-1]))[: 1 + mirror]
        )
        assert (rows[i], mirrored[i]) == found[0][1:]
        assert relative[i].item() == pytest.approx(found[0][0] / np.mean([distance for distance, *_ in found[:count]]), rel=1e-6)


def test_mirror_half_mirrors_half_of_the_images_and_changes_nothing_else():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4), np.uint8)
    mirrored = distances.mirror_half(images)
    changed = (mirrored != images).any((1, 2))
    np.testing.assert_array_equal(mirrored[~changed], images[~changed])
    np.testing.assert_array_equal(mirrored[changed], images[changed][:, :, ::-1])
    assert abs(changed.mean() - 0.5) < 5 * 0.5 / 20  # five standard errors


def test_memorisation_refuses_real_images_that_are_all_in_the_training_set():
    train = brains(30, 0)
    with pytest.raises(UserError, match="not in the training set"):
        distances.memorisation(train[:10], brains(10, 1), train)


@pytest.mark.parametrize("count", [20, 150, 2000])
def test_expected_share_of_new_images_below_the_first_percentile(count):
    """By drawing: of uniform numbers, the percentile of `count` is itself the share below it."""
    rng = np.random.default_rng(0)
    shares = [np.quantile(rng.random(count), 0.01) for _ in range(4000)]
    assert distances.expected_share(count) == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / math.sqrt(len(shares)))
    assert distances.expected_share(20) == pytest.approx(0.0567, abs=1e-4)
