"""Synthetic brain images and their faults, for the tests of metrics.py and what it is made of."""

import numpy as np
from PIL import Image, ImageDraw


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


def draw_heads(count, symmetric, seed=0, side=64):
    """uint8 [count, side, side]: heads of random shape and grey levels, each with folds; axial ones, or sagittal ones if not
    `symmetric`, with a cerebellum and a brain stem on one side."""
    rng, slices = np.random.default_rng(seed), []
    for _ in range(count):
        image = Image.new("L", (256, 256))
        draw = ImageDraw.Draw(image)

        def blob(x, y, width, height, grey, draw=draw, rng=rng):
            x, y, width, height = (value + rng.normal(0, 2) for value in (x, y, width, height))
            draw.ellipse((x - width, y - height, x + width, y + height), fill=grey)
            return x, y, width, height

        if symmetric:  # longer than wide, the front narrower; ventricles in the front half
            grey = int(rng.uniform(140, 200))
            blob(128, 140, 76, 84, grey)
            blob(128, 96, 60, 62, grey)
            for angle in np.linspace(0, np.pi, 9)[1:-1] + rng.normal(0, 0.03, 7):  # sulci in pairs
                for sign in (-1, 1):
                    x, y = 128 + sign * 66 * np.sin(angle), 132 - 78 * np.cos(angle)
                    draw.line((x, y, 128 + 0.75 * (x - 128), 132 + 0.75 * (y - 132)), fill=40, width=5)
            width, length = rng.uniform(6, 12), rng.uniform(20, 34)
            for sign in (-1, 1):
                draw.ellipse((128 + sign * 18 - width, 112 - length, 128 + sign * 18 + width, 112 + length), fill=30)
        else:
            grey = int(rng.uniform(130, 180))
            blob(150, 140, 60, 88, grey)
            blob(120, 116, 44, 56, grey)
            blob(70, 88, 30, 26, grey - 40)  # cerebellum
            draw.polygon([(40, 130), (92, 112), (110, 136), (56, 148)], fill=grey + 30)  # brain stem
            draw.arc((96, 84, 176, 204), 270, 80, fill=240, width=12)  # corpus callosum
            for angle in np.linspace(-1.2, 1.8, 8) + rng.normal(0, 0.03, 8):
                x, y = 148 + 60 * np.cos(angle), 140 + 86 * np.sin(angle)
                draw.line((x, y, 148 + 0.75 * (x - 148), 140 + 0.75 * (y - 140)), fill=40, width=5)
        slices.append(np.asarray(image.resize((side, side), Image.Resampling.LANCZOS)))
    return np.stack(slices)


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
