"""Project real slices into a trained generator: find the style vector w, then the noise, that reproduce each of them.

    targets = read_targets("AD_NC/test", model.resolution)
    projection = project(model, targets.images, targets.labels, seed=0, progress=True)

Follows Karras et al. 2020 (arXiv:1912.04958), appendix D, called K20 below. What cannot be reproduced by w is what the generator
has not learnt. Noise maps reproduce more, but do not show that the generator would ever generate such a slice; nor would a w for
each layer (Abdal et al. 2019, arXiv:1904.03189), so the search is in w alone.
"""

import math
import os
import re
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from analysis.distances import FEATURE_SIDE, Features
from analysis.models import BATCH, draw_z, style_vectors
from data.checks import check_brightness, warn, warn_of_kinds
from data.decode import light_of, pad_and_resize, read_files
from data.folders import EXTENSIONS, class_named, find_slices, some_of, warn_of_unreadable
from dataset import to_float, to_uint8
from utils import CLASSES, UserError

STEPS = 100  # of the search for w, and as many for the noise
LATENTS, STARTS = 4096, 512  # latents per class: for the mean and spread of w, and, the first of them, as starting points
RATE_W, RATE_NOISE = 0.1, 0.1  # Adam's learning rates
BLOCKS, PIXEL_WEIGHT = 2, 5.0  # blocks of VGG16 in the distance; weight of the pixels in it
SPREAD_WEIGHT, STRUCTURE_WEIGHT = 0.02, 0.1  # weights of the distance of w from its mean, and of structure in the noise


# ---------------------------------------------------------------------------------------------------------------------
# Real slices


class Targets(NamedTuple):
    """Slices to project or to encode."""

    images: np.ndarray  # uint8 [N, R, R]
    labels: np.ndarray  # int64 [N]: index of the class in CLASSES, -1 if it is unknown
    names: list  # N different names for files, without extension
    files: list  # their paths, from the folder that was asked for
    paths: list


def read_targets(path, resolution, flag="--project"):
    """The Targets in a file, or in a folder at any depth; the innermost folder named like a class gives the class.

    UserError, which names `flag`, if there is no readable slice; one line on stderr names unreadable files beside readable ones.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path):
        folder = path
        files = [file for file, *_ in find_slices(folder, flag)]
    elif os.path.isfile(path):
        folder, file = os.path.split(path)
        files = [file]
    else:
        raise UserError(f"{flag} {path}: no such file or folder of slices ({', '.join(EXTENSIONS)})")
    labels = {file: class_of(f"{os.path.basename(folder)}/{file}") for file in files}
    decoded, status, levels = {}, {}, {}
    for label in sorted(set(labels.values())):
        members = [file for file in files if labels[file] == label]
        paths = [os.path.join(folder, file) for file in members]
        found = read_files(paths, lambda i, _, grey: np.asarray(pad_and_resize(grey, resolution)))
        decoded |= dict(zip(members, found.results))
        name = CLASSES[label] if label >= 0 else os.path.basename(path)
        status[name], levels[name] = found.status, found.levels
    readable = [file for file in files if decoded[file] is not None]
    unreadable = [file for file in files if decoded[file] is None]
    if not readable:
        raise UserError(f"{flag} {path}: no readable slice, tried {some_of(unreadable)}")
    warn_of_unreadable(unreadable)
    warn_of_kinds(path, status, levels)
    images = np.stack([decoded[file] for file in readable])
    try:
        check_brightness(path, {os.path.basename(path): [light_of(image) for image in images]}, flag)
    except UserError as error:  # nothing is trained on them, and a poor generator's images may be dark
        warn(f"warning: {error}")
    places = [os.path.join(folder, file) for file in readable]
    return Targets(images, np.array([labels[file] for file in readable]), clean_names(readable), readable, places)


def class_of(path):
    """The index in CLASSES of the innermost folder of `path` (with /) that is named like a class; -1 if none is."""
    return next((CLASSES.index(name) for folder in reversed(path.split("/")[:-1]) if (name := class_named(folder))), -1)


def clean_names(files):
    """Names made of letters, digits, "_" and "-" alone, all different, also for file systems that ignore case."""
    names, used = [], set()
    for file in files:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(file)[0]).strip("_")[-80:] or "slice"
        name, count = stem, 1
        while name.lower() in used:
            count += 1
            name = f"{stem}_{count}"
        used.add(name.lower())
        names.append(name)
    return names


# ---------------------------------------------------------------------------------------------------------------------
# The loss


class Distance:
    """A distance |embed(x) - embed(y)|^2 between images: PIXEL_WEIGHT times the mean squared pixel difference, plus features'.

    Features are the maps before the first BLOCKS poolings of the random VGG16 of distances.Features, at half the resolution,
    scaled to length 1 at each position; their squared difference is averaged over positions (Zhang et al. 2018,
    arXiv:1801.03924, eq. 1, with all weights 1).
    """

    def __init__(self, device="cpu"):
        self.blocks = [[]]  # each a list of layers; all but the first begin with a pooling
        for layer in Features(device).network:
            if isinstance(layer, nn.MaxPool2d):
                self.blocks.append([])
            self.blocks[-1].append(layer)
        self.blocks = self.blocks[:BLOCKS]

    def features(self, images):
        """Images [N, 1, R, R] in [-1, 1] -> features [N, D], differentiable."""
        side = min(FEATURE_SIDE, images.shape[-1] // 2)
        x = F.adaptive_avg_pool2d(images.clamp(-1, 1), side).contiguous(memory_format=torch.channels_last)
        maps = []
        for block in self.blocks:
            for layer in block:
                x = layer(x)
            maps.append(F.normalize(x, dim=1, eps=1e-8).flatten(1) / x.shape[-1])
        return torch.cat(maps, 1)

    def embed(self, images):
        """Images [N, 1, R, R], clipped to [-1, 1] as they are when saved -> [N, D]: the pixels and the features.

        Pixels beyond black or white have no gradient: with those that lead back, as in training, all of eight real slices were
        reproduced 1 to 4% worse in as many steps, since much of a slice is black already.
        """
        pixels = images.clamp(-1, 1).flatten(1) * (math.sqrt(PIXEL_WEIGHT) / images.shape[-1])
        return torch.cat([pixels, self.features(images)], 1)


def noise_structure(maps):
    """How far noise maps [N, 1, r, r] are from white noise: squared correlations of neighbouring pixels, summed over maps, [N].

    K20, appendix D: each map counts again at half the size, down to 8x8, for coarse structure. Near 0 for white noise (2 / r^2
    per map on average). Without this term, the noise maps would become a copy of the image.
    """
    total = 0.0
    for noise in maps:
        while True:
            total = total + sum((noise * noise.roll(1, axis)).mean((1, 2, 3)).square() for axis in (2, 3))
            if noise.shape[-1] <= 8:
                break
            noise = 2 * F.avg_pool2d(noise, 2)  # times 2 keeps the variance of white noise
    return total


# ---------------------------------------------------------------------------------------------------------------------
# The search


class Projection(NamedTuple):
    """The projections of N slices. [N, 2]: of w alone (with fixed noise), and of w with the noise that was found."""

    targets: np.ndarray  # uint8 [N, R, R]
    labels: np.ndarray  # int64 [N]; for a conditional model, the class in whose style vectors the search began
    ws: torch.Tensor  # [N, num_ws, w_dim] on the CPU
    noise: list  # num_ws - 1 maps [N, 1, r, r] on the CPU
    images: np.ndarray  # uint8 [N, 2, R, R]
    rms: np.ndarray  # [N, 2], root mean square difference in grey levels
    perceptual: np.ndarray  # [N, 2], squared distance of features
    spread: np.ndarray  # [N], distance of w from the mean of its class, over the root mean square distance of generated w


def project(model, targets, labels, steps=None, seed=0, progress=False):
    """Project `targets` uint8 [N, R, R]: `steps` (None: STEPS) for w, from the nearest of STARTS generated ones, and for the noise.

    labels int64 [N], for a conditional model: the class that gives the starting points and the mean that w is kept near; -1: the
    class of the nearest starting point. A slice's result does not depend on the other slices.
    """
    steps = STEPS if steps is None else steps
    weights, conditional = model.mapping.w_mean, model.is_conditional  # tensors get the device and the type of the weights
    images, labels = to_float(torch.from_numpy(np.array(targets))).to(weights), np.array(labels)
    distance, z = Distance(weights.device), draw_z(LATENTS, model.mapping.z_dim, seed).to(weights)
    with torch.no_grad():
        ws = torch.stack([style_vectors(model.mapping, z, label)[0] for label in model.labels])  # [classes, LATENTS, w_dim]
        means = ws.mean(1)  # [classes, w_dim]
        sizes = (ws - means[:, None]).square().sum(2).mean(1).sqrt()  # [classes], root mean square distance from the mean
        classes = torch.from_numpy(labels if conditional else np.zeros_like(labels)).to(weights.device)
        starts, classes = nearest_starts(model, ws[:, :STARTS], distance, images, classes)
    batches = zip(*(x.split(BATCH) for x in (images, starts, means[classes], sizes[classes])))
    with tqdm(total=2 * steps * -(-len(images) // BATCH), desc="project", unit=" steps", disable=None if progress else True) as bar:
        results = [search(model, distance, *batch, steps, bar) for batch in batches]
    ws, noise, reproduced, perceptual, spread = zip(*results)
    reproduced = torch.cat(reproduced).numpy()
    return Projection(
        targets=np.array(targets),
        labels=classes.cpu().numpy() if conditional else labels,
        ws=torch.cat(ws),
        noise=[torch.cat(maps) for maps in zip(*noise)],
        images=reproduced,
        rms=np.sqrt(np.square(reproduced - np.array(targets, float)[:, None]).mean((2, 3))),
        perceptual=torch.cat(perceptual).numpy(),
        spread=torch.cat(spread).numpy(),
    )


@torch.no_grad()
def nearest_starts(model, ws, distance, images, classes):
    """For each image, the w among `ws` [classes, M, w_dim] whose image is nearest: [N, w_dim], and its class [N].

    classes [N]: the class to search in, -1 for all. Memory: 0.4 MB per image at 64x64, 1.8 MB at 256x256.
    """
    targets = torch.cat([distance.embed(batch) for batch in images.split(BATCH)])
    least, nearest = images.new_full([len(images)], math.inf), torch.zeros_like(classes)
    starts = ws[0, :1].repeat(len(images), 1)
    for label, class_ws in enumerate(ws):
        for batch in class_ws.split(BATCH):
            distances = torch.cdist(targets, distance.embed(model.generator(batch, "fixed")))  # [N, BATCH]
            distances[(classes >= 0) & (classes != label)] = math.inf
            distances, index = distances.min(1)
            nearer = distances < least
            least[nearer], starts[nearer], nearest[nearer] = distances[nearer], batch[index[nearer]], label
    return starts, nearest


def search(model, distance, images, start, mean, size, steps, bar):
    """Project one batch of images [N, 1, R, R]: ws, noise, images, perceptual, spread of a Projection, on the CPU.

    start [N, w_dim]: the first w; mean [N, w_dim] and size [N]: of generated w, and their root mean square distance from it.
    """
    generator, target = model.generator, distance.embed(images)
    w = start.clone()
    noise = [style.fixed_noise.repeat(len(images), 1, 1, 1) for block in generator.blocks for style in block.styles]
    reproduced = []  # by w alone, then with noise

    def squared_spread():  # [N]
        return (w - mean).square().sum(1) / size.square()

    for parameters, rate in ([w], RATE_W), (noise, RATE_NOISE):
        optimiser = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], betas=(0.9, 0.99))
        for step in range(steps):
            loss = (distance.embed(generator(w, noise)) - target).square().sum(1)
            if parameters is noise:
                loss = loss + STRUCTURE_WEIGHT * noise_structure(noise)
            else:
                loss = loss + SPREAD_WEIGHT * squared_spread()
            optimiser.param_groups[0]["lr"] = rate * ramp(step / steps)
            optimiser.zero_grad()
            loss.sum().backward()  # the sum, so that the gradients of a slice do not depend on the batch
            optimiser.step()
            if parameters is noise:
                normalise(noise)
            bar.update()
        for parameter in parameters:
            parameter.requires_grad_(False)
        reproduced.append(to_uint8(generator(w, noise)))
    features = distance.features(images)
    perceptual = [(distance.features(to_float(result).to(images)) - features).square().sum(1) for result in reproduced]
    return (
        w[:, None].repeat(1, generator.num_ws, 1).cpu(),
        [noise_map.cpu() for noise_map in noise],
        torch.stack(reproduced, 1).cpu(),
        torch.stack(perceptual, 1).cpu(),
        squared_spread().sqrt().cpu(),
    )


def ramp(done):
    """Factor of the learning rate after a share `done` of the steps: it rises over 5%, and falls over the last 40% (K20: 25)."""
    return min(1, done / 0.05 + 0.02) * (0.5 - 0.5 * math.cos(math.pi * min(1, (1 - done) / 0.4)))


@torch.no_grad()
def normalise(noise):
    """Bring every noise map to mean 0 and variance 1, in place (K20, after every step)."""
    for noise_map in noise:
        noise_map.sub_(noise_map.mean((2, 3), keepdim=True))
        noise_map.mul_((noise_map.square().mean((2, 3), keepdim=True) + 1e-8).rsqrt())
