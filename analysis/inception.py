"""FID and KID as others report them: by the InceptionV3 of 2015 in the TorchScript file that clean-fid and NVIDIA's metrics use.

    extract = Inception("inception-2015-12-05.pt", device)          # UserError: no such network
    features = extract(images)                                      # uint8 [N, R, R] -> float32 [N, 2048]
    found = compare_features(features_of_real, features_of_fake, groups)

The file is not part of this project: the user downloads it once. Any other TorchScript file that maps float32 [N, 3, 299, 299],
grey levels from 0 to 255, to [N, D] when it is called with return_features=True, is used likewise.
"""

import os
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from analysis.distances import frechet_distance, frechet_error, in_batches, polynomial_mmd, split_groups
from dataset import to_uint8
from utils import UserError

SOURCE = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
SIDE = 299  # pixels
FEWEST = 4  # slices of each of two halves, below which there is no floor


class FeatureDistances(NamedTuple):
    """Distances of two sets of features, with their standard errors."""

    fid: float  # `frechet_distance`, which depends on the sizes of the sets
    fid_error: float
    kid_x1000: float  # `polynomial_mmd` (Binkowski et al. 2018), not standardised; unbiased
    kid_x1000_error: float


class Inception:
    """Maps images to the features of the network in a TorchScript file: `Inception(path)(images)` is float32 [N, D] on the CPU.

    UserError, which names `flag`, if the file holds no such network.
    """

    def __init__(self, path, device="cpu", flag="--fid_weights"):
        self.device = torch.device(device)
        try:
            if not os.path.isfile(path):  # opening a pipe would block
                raise FileNotFoundError("no such file")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch calls TorchScript deprecated
                self.network = torch.jit.load(path, map_location=self.device).eval()
            features = self._extract(np.zeros((2, SIDE, SIDE), np.uint8))
            if features.ndim != 2 or len(features) != 2 or not features.isfinite().all():
                raise ValueError(f"features of two slices are {list(features.shape)}, or not finite")
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:80]
            text = f"no InceptionV3 as a TorchScript file ({reason}); download it once from {SOURCE}"
            raise UserError(f"{flag} {path}: {text}") from None

    def __call__(self, images, label=None):
        """Features of uint8 [N, R, R]; `label` names a progress bar."""
        return torch.cat([self._extract(to_uint8(batch).numpy()) for batch in in_batches(images, "cpu", label)])

    @torch.no_grad()
    def _extract(self, images):
        return self.network(clean_resize(images).to(self.device), return_features=True).float().cpu()


def clean_resize(images):
    """Slices uint8 [N, R, R] as clean-fid gives them to the network (Parmar et al. 2022): float32 [N, 3, 299, 299], 0 to 255.

    PIL's bicubic filter on floats, which is antialiased, clipped; at 299 pixels the file's own resampling changes nothing.
    """
    resized = [Image.fromarray(image.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack(resized).clip(0, 255))[:, None].expand(-1, 3, -1, -1).contiguous()


def feature_distances(x, y, x_groups=None, y_groups=None, label=None):
    """FeatureDistances of x [N, D] and y [M, D] with errors over groups, see `frechet_error`; `label` names a progress bar."""

    def bar(blocks):
        return tqdm(blocks, label, leave=False, disable=None if label else True)

    x, y = x.double(), y.double()
    mmd, error = polynomial_mmd(x, y, x_groups=x_groups, y_groups=y_groups)
    return FeatureDistances(frechet_distance(x, y), frechet_error(x, y, x_groups, y_groups, progress=bar), 1000 * mmd, 1000 * error)


def compare_features(real, fake, groups=None, progress=False):
    """{"all", "size", "half", "floor"} of features real [N, D] and fake [M, D], both in random order.

    all: FeatureDistances of all slices. size: slices in each of two halves of `real`, of different groups [N] (people; None: each
    slice is one), at most M. floor: FeatureDistances of these halves; half: of one of them and as many generated slices, to compare
    with the floor. Without halves of FEWEST slices, size is 0 and half and floor are None. UserError: a set of one slice.
    """
    if min(len(real), len(fake)) < 2:
        raise UserError("one slice is too few for FID: each set needs at least 2")
    label = "standard error of FID" if progress else None
    rows = split_groups(np.arange(len(real)) if groups is None else groups, 2)
    size = min(len(fake), *map(len, rows))
    found = {"all": feature_distances(real, fake, groups, label=label), "size": 0, "half": None, "floor": None}
    if size < FEWEST:
        return found
    (x, y), (x_groups, y_groups) = (
        [None if of is None else of[part[:size]] for part in rows]
        for of in (real, groups if groups is None else np.asarray(groups))
    )
    half, floor = feature_distances(x, fake[:size], x_groups, label=label), feature_distances(x, y, x_groups, y_groups, label)
    return found | {"size": size, "half": half, "floor": floor}
