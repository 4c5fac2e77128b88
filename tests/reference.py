"""The filter [1, 3, 3, 1] written out pixel by pixel, for the tests of ops.py and modules.py."""

import numpy as np

TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def direct_filter(image, padding, stride):
    padded = np.pad(image, padding)
    size = (padded.shape[0] - 4) // stride + 1
    return np.array(
        [
            [(padded[i * stride : i * stride + 4, j * stride : j * stride + 4] * TAPS).sum() for j in range(size)]
            for i in range(size)
        ]
    )


def direct_upsample(image):
    spaced = np.zeros((2 * len(image), 2 * len(image)))
    spaced[::2, ::2] = image
    return 4 * direct_filter(np.pad(spaced, ((2, 1), (2, 1))), 0, 1)
