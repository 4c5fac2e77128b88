"""Find a real slice in a trained generator: the style w, then the noise, from which it draws that slice.

    targets = read_targets("AD_NC/test", model.generator.resolution)
    projection = project(model, targets.images, targets.labels, steps=100, space="w", seed=0, progress=True)
    save_projection(projection, targets.names, "out")

Follows Karras et al. 2020 (arXiv:1912.04958), appendix D, called K20 below; space "w+" gives every layer a w of its own, as
Abdal et al. 2019 (arXiv:1904.03189) do. What no w reaches, the generator has not learned to draw. Noise, which differs from
place to place, reproduces more, and so does w+; neither shows that the generator would ever draw such a slice by itself.
"""

import math
import os
import re
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from analysis import figures
from analysis.distances import FEATURE_SIDE, Features
from analysis.models import BATCH, draw_z, style_vectors
from dataset import EXTENSIONS, decode, find_slices, for_each, some_of, to_float, to_uint8
from utils import CLASSES, UserError, atomic_path, make_folder

DRAWN, STARTS = 4096, 512  # styles of each class drawn for mean and spread, and of these as starting points
RATE_W, RATE_NOISE = 0.1, 0.1  # Adam's learning rates
LAYERS, PIXELS = 2, 5.0  # blocks of VGG16 in the distance; weight of the pixels in it
NEAR, WHITE = 0.02, 0.1  # weights of the distance of w from its mean, and of structure in the noise
FRAMES, HOLD = 25, 10  # pictures of the course, and how many times more the last is shown
SHIFTS = -1.0, -0.5, 0.0, 0.5, 1.0  # of a class strip, in mean differences between the classes
ERROR = 64  # grey levels at which the colours of an error map end


# ---------------------------------------------------------------------------------------------------------------------
# Real slices


class Targets(NamedTuple):
    """Slices to project."""

    images: np.ndarray  # uint8 [N, R, R]
    labels: np.ndarray  # int64 [N]: place of the class in CLASSES, -1 where no folder tells it
    names: list  # N different file names without ending, safe to write


def read_targets(path, resolution):
    """`Targets` of a file, or of all slices at any depth in a folder; the innermost folder AD or NC tells the class."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        folder = path
        try:
            files = [file for file, *_ in find_slices(folder)]
        except UserError as error:
            raise UserError(str(error).removeprefix("--dataset_dir: ")) from None
    elif os.path.isfile(path):
        folder, name = os.path.split(path)
        files = [name]
    else:
        raise UserError(f"{path}: no such file or folder of slices ({', '.join(EXTENSIONS)})")
    images = for_each(lambda file: decode(os.path.join(folder, file), resolution), files)
    unreadable = [file for file, image in zip(files, images) if image is None]
    files = [file for file, image in zip(files, images) if image is not None]
    if not files:
        raise UserError(f"{path}: no readable slice, tried {some_of(unreadable)}")
    if unreadable:
        print(
            f"warning: {len(unreadable)} unreadable file{'s' * (len(unreadable) > 1)} left out: {some_of(unreadable)}",
            file=sys.stderr,
        )
    outer = os.path.basename(folder)
    labels = [
        next((CLASSES.index(part) for part in reversed([outer, *file.split("/")[:-1]]) if part in CLASSES), -1) for file in files
    ]
    return Targets(np.stack([image for image in images if image is not None]), np.array(labels), clean_names(files))


def clean_names(files):
    """One name each, of letters, digits, "_" and "-" alone, and all different (in lower case too, for disks that say so)."""
    names, taken = [], set()
    for file in files:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", os.path.splitext(file)[0]).strip("_")[-80:] or "slice"
        name, count = stem, 1
        while name.lower() in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name.lower())
        names.append(name)
    return names


# ---------------------------------------------------------------------------------------------------------------------
# The distance


class Distance:
    """|embed(x) - embed(y)|^2 between images in [-1, 1]: PIXELS times the mean squared difference, plus that of features.

    Features are the maps before the first LAYERS poolings of the random VGG16 of distances.Features, at half the resolution,
    scaled to length 1 at each place and averaged over places (Zhang et al. 2018, arXiv:1801.03924, eq. 1, with weights 1).
    On real slices of 64x64, all five blocks at full resolution took nearly seven times as long a step and told little more.
    """

    def __init__(self, device="cpu"):
        self.blocks = [[]]  # the layers up to each pooling, and from there on to the next
        for layer in Features("vgg16", device).network:
            if isinstance(layer, nn.MaxPool2d):
                self.blocks.append([])
            self.blocks[-1].append(layer)
        self.blocks = self.blocks[:LAYERS]

    def features(self, images):
        """Float [N, 1, R, R] -> [N, D], differentiable."""
        side = min(FEATURE_SIDE, images.shape[-1] // 2)
        x = F.adaptive_avg_pool2d(images.clamp(-1, 1), side).contiguous(memory_format=torch.channels_last)
        found = []
        for block in self.blocks:
            for layer in block:
                x = layer(x)
            found.append(F.normalize(x, dim=1, eps=1e-8).flatten(1) / x.shape[-1])
        return torch.cat(found, 1)

    def embed(self, images):
        """Float [N, 1, R, R] -> [N, D]. Clipped, as a picture is: beyond black and white a generator draws what it likes."""
        pixels = images.clamp(-1, 1).flatten(1) * (math.sqrt(PIXELS) / images.shape[-1])
        return torch.cat([pixels, self.features(images)], 1)


def noise_structure(maps):
    """Squared correlation of noise maps [N, 1, r, r] with their neighbours to the right and below, summed over maps: [N].

    K20, appendix D: each map again at half the size, down to 8x8, so that coarse structure counts as well. Near 0 for white
    noise (2 / r^2 a map on average); without it the noise would simply hold the picture.
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
    """What was found for N slices. Where two stand for each: with w alone (and fixed noise), and with w and noise."""

    targets: np.ndarray  # uint8 [N, R, R]
    labels: np.ndarray  # int64 [N], of a conditional model the class that was taken
    ws: torch.Tensor  # [N, num_ws, w_dim] on the CPU
    noise: list  # num_ws - 1 maps [N, 1, r, r] on the CPU
    images: np.ndarray  # uint8 [N, 2, R, R]
    rms: np.ndarray  # [N, 2], root mean square difference in grey levels
    perceptual: np.ndarray  # [N, 2], squared distance of features
    spread: np.ndarray  # [N], distance of w from its class's mean; the root mean square of drawn w is 1
    course: np.ndarray  # uint8 [N, frames, R, R], from the starting point to the end


def project(model, targets, labels, steps=100, space="w", seed=0, progress=False):
    """Project `targets` uint8 [N, R, R]: `steps` for w from the nearest of STARTS drawn ones, then as many for the noise.

    labels int64 [N]: the class, for a conditional model, whose w are started from and whose mean w is held near; where it is
    -1 the w of all classes compete. space: "w" or "w+". No slice's result depends on the others, but for rounding.
    """
    weights, classes = model.mapping.w_mean, len(model.labels)  # all tensors get the device and the type of these
    device = weights.device
    images, labels = to_float(torch.from_numpy(np.array(targets))).to(weights), np.array(labels)
    distance, z = Distance(device), draw_z(DRAWN, model.mapping.z_dim, seed).to(weights)
    with torch.no_grad():
        drawn = torch.stack([style_vectors(model.mapping, z, label)[0] for label in model.labels])
        centres = drawn.mean(1)  # [classes, w_dim]
        sizes = (drawn - centres[:, None]).square().sum(2).mean(1).sqrt()  # [classes]
        rows = torch.from_numpy(labels if classes > 1 else np.zeros_like(labels)).to(device)
        starts, rows = nearest_starts(model, drawn[:, :STARTS], distance, images, rows)
    with tqdm(total=2 * steps * -(-len(images) // BATCH), desc="project", unit=" steps", disable=None if progress else True) as bar:
        found = [
            search(model, distance, *part, steps, space, bar)
            for part in zip(*(x.split(BATCH) for x in (images, starts, centres[rows], sizes[rows])))
        ]
    ws, noise, pictures, perceptual, spread, course = zip(*found)
    pictures = torch.cat(pictures).numpy()
    rms = np.sqrt(np.square(pictures - np.array(targets, float)[:, None]).mean((2, 3)))
    return Projection(
        np.array(targets),
        rows.cpu().numpy() if classes > 1 else labels,
        torch.cat(ws),
        [torch.cat(maps) for maps in zip(*noise)],
        pictures,
        rms,
        torch.cat(perceptual).numpy(),
        torch.cat(spread).numpy(),
        torch.cat(course).numpy(),
    )


@torch.no_grad()
def nearest_starts(model, drawn, distance, images, labels):
    """The w [N, w_dim] of `drawn` [classes, *, w_dim] that draws each image best among its class (-1: all); its class [N].

    Memory: 0.4 MB per image at 64x64, 1.8 MB at 256x256.
    """
    targets = torch.cat([distance.embed(part) for part in images.split(BATCH)])
    best, classes = images.new_full([len(images)], math.inf), torch.zeros_like(labels)
    starts = drawn[0, :1].repeat(len(images), 1)
    for label, ws in enumerate(drawn):
        for part in ws.split(BATCH):
            apart = torch.cdist(targets, distance.embed(model.generator(part, "fixed")))  # [N, BATCH]
            apart[(labels >= 0) & (labels != label)] = math.inf
            apart, row = apart.min(1)
            better = apart < best
            best[better], starts[better], classes[better] = apart[better], part[row[better]], label
    return starts, classes


def search(model, distance, images, start, centre, size, steps, space, bar):
    """Project one batch [N, 1, R, R]; ws, noise, images, perceptual, spread, course of a `Projection`, as CPU tensors.

    start, centre [N, w_dim]: where w begins and what it is held near; size [N]: how far drawn w lie from `centre`.
    """
    generator, target = model.generator, distance.embed(images)
    w = start[:, None].repeat(1, generator.num_ws if space == "w+" else 1, 1)
    noise = [style.fixed_noise.repeat(len(images), 1, 1, 1) for block in generator.blocks for style in block.styles]
    moments = set(np.linspace(0, 2 * steps, FRAMES).astype(int).tolist())
    course, ends = [], []

    def spread():  # [N], squared; 1 on average for drawn w
        return (w - centre[:, None]).square().sum(2).mean(1) / size.square()

    for parameters, rate in ([w], RATE_W), (noise, RATE_NOISE):
        optimiser = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], betas=(0.9, 0.99))
        for step in range(steps):
            drawn = generator(w.expand(-1, generator.num_ws, -1), noise)
            if len(ends) * steps + step in moments:
                course.append(to_uint8(drawn.detach()))
            loss = (distance.embed(drawn) - target).square().sum(1)
            loss = loss + (NEAR * spread() if parameters is not noise else WHITE * noise_structure(noise))
            optimiser.param_groups[0]["lr"] = rate * ramp(step / steps)
            optimiser.zero_grad()
            loss.sum().backward()  # a sum: no slice's gradient depends on its neighbours
            optimiser.step()
            if parameters is noise:
                normalise(noise)
            bar.update()
        for parameter in parameters:
            parameter.requires_grad_(False)
        ends.append(generator(w.expand(-1, generator.num_ws, -1), noise))
    ends = [to_uint8(end) for end in ends]
    features = distance.features(images)
    perceptual = [(distance.features(to_float(end).to(images)) - features).square().sum(1) for end in ends]
    return (
        w.expand(-1, generator.num_ws, -1).cpu(),
        [one.cpu() for one in noise],
        torch.stack(ends, 1).cpu(),
        torch.stack(perceptual, 1).cpu(),
        spread().sqrt().cpu(),
        torch.stack([*course, ends[-1]], 1).cpu(),
    )


def ramp(done):
    """Learning rate at a share `done` of the steps: linear up over the first 5%, a cosine down over the last 40% (K20: 25)."""
    return min(1, done / 0.05 + 0.02) * (0.5 - 0.5 * math.cos(math.pi * min(1, (1 - done) / 0.4)))


@torch.no_grad()
def normalise(noise):
    """Bring every map to mean 0 and variance 1 (K20, after every step)."""
    for one in noise:
        one.sub_(one.mean((2, 3), keepdim=True))
        one.mul_((one.square().mean((2, 3), keepdim=True) + 1e-8).rsqrt())


# ---------------------------------------------------------------------------------------------------------------------
# From one class to the other


@torch.no_grad()
def move_class(model, projection, seed=0):
    """Slices as projected into a conditional model, moved by SHIFTS times the mean of w(z, NC) - w(z, AD), their noise held.

    Returns uint8 [N, len(SHIFTS), R, R]: what the model holds for the mean difference, not how this brain would change.
    """
    device = model.mapping.w_mean.device
    z = draw_z(DRAWN, model.mapping.z_dim, seed).to(device)
    ad, nc = (style_vectors(model.mapping, z, label)[0].mean(0) for label in model.labels)
    moved = []
    for shift in SHIFTS:
        parts = zip(*(x.to(device).split(BATCH) for x in (projection.ws, *projection.noise)))
        moved.append(torch.cat([to_uint8(model.generator(ws + shift * (nc - ad), noise)).cpu() for ws, *noise in parts]))
    return torch.stack(moved, 1).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_projection(projection, names, output_dir, moved=None):
    """Write <name>.png, .npz, .gif of every slice, and <name>_classes.png given `move_class`'s pictures; returns the paths.

    .npz: ws [num_ws, w_dim], noise_00 ... [r, r], target [R, R], images [2, R, R], rms, perceptual [2], spread, label.
    """
    make_folder(output_dir, "--output_dir")
    paths, scale = [], f"\u00b1{ERROR} grey levels"
    towards = [f"{-shift:g} to AD" if shift < 0 else f"{shift:g} to NC" if shift else "as projected" for shift in SHIFTS]
    for i, name in enumerate(clean_names(names)):
        base = os.path.join(output_dir, name)
        target, images, rms = projection.targets[i], projection.images[i], projection.rms[i]
        columns = ["real", f"w alone\nRMS {rms[0]:.1f}", f"w and noise\nRMS {rms[1]:.1f}", f"less the real one\n{scale}"]
        note = (
            f"{name}: RMS error in grey levels of 255\n"
            f"w lies {projection.spread[i]:.2f} from its mean; drawn w lie 1 from it on average"
        )
        cells = [target, *images, figures.colour(images[1] - target.astype(float), ERROR)]
        figures.save_image_table([cells], f"{base}.png", [""], columns, note, min_side=160)
        noise = {f"noise_{k:02d}": maps[i, 0].numpy() for k, maps in enumerate(projection.noise)}
        with atomic_path(f"{base}.npz") as temporary:
            np.savez_compressed(
                temporary,
                ws=projection.ws[i].numpy(),
                target=target,
                images=images,
                rms=rms,
                perceptual=projection.perceptual[i],
                spread=projection.spread[i],
                label=projection.labels[i],
                **noise,
            )
        frames = [np.hstack([target, frame]) for frame in projection.course[i]]
        figures.save_gif(frames + [frames[-1]] * HOLD, f"{base}.gif", 120)
        paths += [f"{base}.png", f"{base}.npz", f"{base}.gif"]
        if moved is not None:
            columns = [*towards, f"right less left\n{scale}"]
            cells = [*moved[i], figures.colour(moved[i, -1].astype(float) - moved[i, 0], ERROR)]
            note = (
                f"{name}, taken for {CLASSES[projection.labels[i]]}: w moved by shares of the mean w(z, NC) - w(z, AD), "
                "noise held\nwhat the model holds for the mean difference, not how this brain would change"
            )
            figures.save_image_table([cells], f"{base}_classes.png", [""], columns, note, min_side=160)
            paths.append(f"{base}_classes.png")
    return paths
