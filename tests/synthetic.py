"""Synthetic brain images and their faults, for the tests of metrics.py and what it is made of."""

import numpy as np
from PIL import Image


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


def few_modes(images, modes):
    """As many images, but only `modes` different ones."""
    return images[np.arange(len(images)) % modes]


def increases(*values):
    return all(a < b for a, b in zip(values, values[1:]))


def noise(width, height, seed=0, high=256, dtype=np.uint8):
    """Uniform random pixels [height, width] below `high`."""
    return np.random.default_rng(seed).integers(0, high, (height, width)).astype(dtype)


def save(path, pixels):
    """Write pixels as an image, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
