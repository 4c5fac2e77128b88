"""How good generated slices are, in numbers that can be had offline: against real slices, and against the training set.

    python metrics.py --real AD_NC/test --fake predictions/AD --classes AD --train AD_NC/train

--fake is a folder of pictures, such as `predict.py --export` writes; --real should be slices that no model was trained on.
Every number stands beside its floor: the same number between two halves of the real set, which is what a perfect
generator would get. None is to be compared with published values, which use other features and pictures. 2,000 against
2,000 slices at 256x256 take two minutes on two CPU cores, and 1.9 GB of memory. What is computed stands in distances.py.
"""

import json
import math
import os
import sys
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from analysis import figures
from analysis.distances import (
    BATCH,
    NEIGHBOURS,
    PAIRS,
    PATCH,
    PATCHES,
    Features,
    Memory,
    draw_patches,
    in_batches,
    laplacian_pyramid,
    memorisation,
    ms_ssim,
    polynomial_mmd,
    prdc,
    radial_power,
    sliced_wasserstein,
    spectrum_db,
    standardise,
)
from dataset import Slices, class_folders, find_slices, for_each, holds_classes, open_slice, pad_and_resize, some_of, to_grey
from utils import CLASSES, RESOLUTIONS, ArgumentParser, Group, UserError, atomic_path, make_folder, number, pick_device, run_cli

# ---------------------------------------------------------------------------------------------------------------------
# All of it


class Description(NamedTuple):
    """What the comparisons need to know of one set of N slices."""

    features: torch.Tensor  # [N, D]
    patches: list  # a band of the pyramid each, finest first: [N, PATCHES, 49]
    power: torch.Tensor  # [N, R/2], of `radial_power`
    similarity: torch.Tensor  # MS-SSIM of slices 0 and 1, 2 and 3, ...: [N // 2], or PAIRS


class Study(NamedTuple):
    """What `study` found: plain numbers, and what the pictures are drawn from."""

    values: dict
    real: Description
    fake: Description
    memory: Memory  # None without a training set


@torch.inference_mode()
def describe(images, extract, seed=0, label=None):
    """The Description of uint8 `images` [N, R, R] in random order, on the device of `extract` (Features)."""
    rng, power, similarity, start = np.random.default_rng(seed), [], [], 0
    patches = [
        torch.empty(len(images), PATCHES, PATCH**2, device=extract.device) for _ in range(int(math.log2(images.shape[-1] / 16)) + 1)
    ]
    for batch in in_batches(images, extract.device, label and f"pixels of {label}"):
        for drawn, band in zip(patches, laplacian_pyramid(batch)):
            drawn[start : start + len(batch)] = draw_patches(band, rng)
        start += len(batch)
        power.append(radial_power(batch))
        if len(similarity) * BATCH < 2 * PAIRS:
            similarity.append(ms_ssim(batch[0 : len(batch) // 2 * 2 : 2], batch[1::2]))
    features = extract(images, label and f"features of {label}")
    return Description(features, patches, torch.cat(power), torch.cat(similarity).cpu())


def halves(one, size):
    """The even and the odd of its first `size` slices as two Descriptions, which share `similarity`."""
    return [
        Description(one.features[i:size:2], [band[i:size:2] for band in one.patches], one.power[i:size:2], one.similarity)
        for i in (0, 1)
    ]


def compare(real, fake, size, swd_size, seed=0):
    """All distances between two Descriptions: a dict of floats.

    What depends on the size of the sets is taken of the first `size` slices of each, and the SWD of the first `swd_size`.
    """
    mmd, error = polynomial_mmd(*standardise(real.features, fake.features))
    values = {"kid_x1000": 1000 * mmd, "kid_x1000_error": 1000 * error, **prdc(real.features[:size], fake.features[:size])}
    rng, swd = np.random.default_rng(seed), []
    for a, b in zip(real.patches, fake.patches):
        swd.append(1000 * sliced_wasserstein(a[:swd_size].flatten(0, 1), b[:swd_size].flatten(0, 1), rng))
    values |= {f"swd_x1000_{16 << i}": value for i, value in reversed(list(enumerate(reversed(swd))))}
    values["swd_x1000"] = sum(swd) / len(swd)
    values["spectrum_db"] = (spectrum_db(real.power) - spectrum_db(fake.power)).abs().mean().item()
    return values | {"ms_ssim": fake.similarity.mean().item(), "ms_ssim_real": real.similarity.mean().item()}


def study(real, fake, train=None, features="vgg16", device="cpu", seed=0, progress=False):
    """Compare uint8 [N, R, R] with [M, R, R], each in random order, and with `train` if given; a `Study`.

    Its values are those of `compare`; the same between two halves of `real` as floor_..., where they are large enough; and
    memorised, nearest_fake, nearest_real (the share of `memorisation` and median distances). `train` may be `Slices`.
    Memory at R = 256: 150 kB a slice, besides the slices themselves. UserError: too few slices, unequal sizes.
    """
    sides = [images.shape[-1] for images in (real, fake, *([] if train is None else [train[[0]]]))]
    if len(set(sides)) > 1:
        raise UserError(f"slices of one size are needed, not of {' and '.join(map(str, sides))} pixels")
    for name, images in (("real", real), ("generated", fake)):
        if len(images) <= NEIGHBOURS:
            raise UserError(f"{len(images)} {name} slices are too few: each set needs at least {NEIGHBOURS + 1}")
    extract = Features(features, device, seed)
    described = [
        describe(images, extract, seed, name if progress else None) for name, images in (("real", real), ("generated", fake))
    ]
    size = min(len(real), len(fake))  # the SWD falls with size: it and its floor take half
    values, memory = compare(*described, size, size // 2, seed), None
    if size >= 2 * (NEIGHBOURS + 1):
        floor = compare(*halves(described[0], size // 2 * 2), size // 2, size // 2, seed)
        values |= {f"floor_{name}": value for name, value in floor.items()}
    if train is not None:
        memory = memorisation(real, fake, train, device, progress)
        values |= {
            "memorised": memory.share,
            "nearest_fake": memory.fake.median().item(),
            "nearest_real": memory.held_out.median().item(),
        }
    return Study(values, *described, memory)


def evaluate(real, fake, train=None, **options):
    """The values of `study` alone: a dict of floats, the lower the better but for precision, recall, density, coverage."""
    return study(real, fake, train, **options).values


# ---------------------------------------------------------------------------------------------------------------------
# The report


def table(values):
    """The values as lines of text, each beside its floor."""
    rows = {
        "KID x 1000": "kid_x1000",
        **{name: name for name in ("precision", "recall", "density", "coverage")},
        "SWD x 1000": "swd_x1000",
        **{f"  at {name[10:]}": name for name in values if name.startswith("swd_x1000_")},
        "spectrum, dB": "spectrum_db",
        "MS-SSIM of pairs": "ms_ssim",
    }
    lines = [f"{'':18}{'generated':>10}{'real halves':>13}"]
    for label, name in rows.items():
        floor = f"{values['floor_' + name]:13.3f}" if "floor_" + name in values else f"{'-':>13}"
        lines.append(f"{label:18}{values[name]:10.3f}{floor}")
    lines.insert(
        2,
        f"{'  standard error':18}{values['kid_x1000_error']:10.3f}"
        + (f"{values['floor_kid_x1000_error']:13.3f}" if "floor_kid_x1000_error" in values else ""),
    )
    if "memorised" in values:
        lines += [
            f"{'memorised, share':18}{values['memorised']:10.3f}{0.01:13.3f}",
            f"{'nearest, median':18}{values['nearest_fake']:10.3f}{values['nearest_real']:13.3f}",
        ]
    return "\n".join(lines)


def save_metrics(found, path):
    """metrics.png: the table, radial spectra, SWD per level and, given a training set, the nearest distances."""
    grey, red, blue = "#999999", figures.CLASS_COLOURS["AD"], figures.CLASS_COLOURS["NC"]
    figure = Figure(figsize=(11, 8), layout="constrained")
    (text, spectra), (levels, distances) = figure.subplots(2, 2)
    text.axis("off")
    text.text(0, 1, table(found.values), family="monospace", fontsize=10.5, va="top", transform=text.transAxes)
    text.text(
        0,
        0,
        "Real halves: what a perfect generator would get.\nBetter is lower, but for precision, recall, density "
        "and coverage\nhigher, and for MS-SSIM, memorised and nearest alike.",
        fontsize=9,
        va="bottom",
        transform=text.transAxes,
    )

    for name, one, colour in (("real", found.real, blue), ("generated", found.fake, red)):
        spectra.plot(range(1, one.power.shape[1] + 1), spectrum_db(one.power), color=colour, label=name)
    spectra.set_xscale("log", base=2)
    spectra.xaxis.set_major_formatter("{x:.0f}")
    spectra.set(xlabel="cycles per picture", ylabel="mean power, dB", title="radial power spectrum")

    sides = [name[10:] for name in found.values if name.startswith("swd_x1000_")]
    x = np.arange(len(sides))
    levels.bar(x - 0.2, [found.values[f"swd_x1000_{side}"] for side in sides], 0.4, color=red, label="generated and real")
    if "floor_swd_x1000" in found.values:
        levels.bar(
            x + 0.2, [found.values[f"floor_swd_x1000_{side}"] for side in sides], 0.4, color=grey, label="two halves of the real"
        )
    levels.margins(y=0.25)
    levels.set(
        xticks=x,
        xticklabels=sides,
        xlabel="band of the Laplacian pyramid, pixels",
        ylabel="SWD x 1000",
        title="sliced Wasserstein distance",
    )

    if found.memory:
        edges = np.linspace(0, 1, 41)
        for name, values, colour in (("real, held out", found.memory.held_out, blue), ("generated", found.memory.fake, red)):
            distances.hist(
                values.numpy(), edges, weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.6, label=name
            )
        distances.axvline(
            found.memory.held_out.quantile(0.01).item(),
            color="black",
            linewidth=1,
            linestyle=":",
            label="1st percentile of held out",
        )
        distances.set(
            xlabel="distance to the nearest training slice, over the mean of the 50 nearest", ylabel="share", title="memorisation"
        )
    else:
        distances.axis("off")
    for axes in (spectra, levels, distances)[: 3 if found.memory else 2]:
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
    figures.save_figure(figure, path)


def save_nearest(fake, train, memory, path, count=12):
    """nearest.png: the generated slices that lie nearest to the training set, beside what they lie near to."""
    shown = memory.fake.argsort()[:count].numpy()
    twins = [train[[row]][0] for row in memory.nearest[shown].tolist()]
    twins = [twin[:, ::-1] if mirrored else twin for twin, mirrored in zip(twins, memory.mirrored[shown].tolist())]
    figures.save_grids({"generated, nearest first": fake[shown], "nearest training slices": np.stack(twins)}, path)


def load(flag, folder, classes, resolution, count=None, seed=0):
    """Slices of `folder` in random order, uint8 [N, R, R]: of its AD/ and NC/ as `classes` says, else all at any depth.

    At most `count`, drawn with `seed`. UserError that names `flag`: nothing to read, or what a generator of a resolution
    below `resolution` made (other small pictures are enlarged, as for training).
    """

    def read(path):
        with open_slice(path) as image:
            return image.size, np.asarray(pad_and_resize(to_grey(image), resolution))

    if not os.path.isdir(folder):
        raise UserError(f"{flag} {folder}: no such folder")
    try:
        folders = class_folders(folder, classes).values() if holds_class(folder) else [folder]
        paths = [os.path.join(one, name) for one in folders for name, *_ in find_slices(one)]
    except UserError as error:
        raise UserError(str(error).replace("--dataset_dir", flag)) from None
    paths = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))[:count]]
    found = for_each(read, paths, label=f"reading {flag}")
    if damaged := [os.path.basename(path) for path, one in zip(paths, found) if one is None]:
        print(f"warning: {flag} {folder}: {len(damaged)} unreadable left out: {some_of(damaged)}", file=sys.stderr)
    found = [one for one in found if one is not None]
    if not found:
        raise UserError(f"{flag} {folder}: no readable slice in it")
    width, height = min(size for size, _ in found)
    if flag == "--fake" and width == height in RESOLUTIONS and width < resolution:
        raise UserError(f"--fake {folder} holds slices of {width}x{width}: compare them at --resolution {width}")
    return np.stack([pixels for _, pixels in found])


def holds_class(folder):
    """Is it a data set folder, or the folder above one (which `class_folders` then refuses with a hint)?"""
    return any(holds_classes(place, name) for place in (folder, os.path.join(folder, "train")) for name in CLASSES)


def parse_args(argv=None):
    parser = ArgumentParser(
        "Compare generated slices with real ones: KID, precision, recall, spectra, memorisation, ...",
        "metrics.py --real AD_NC/test --fake out/AD --classes AD",
        "metrics.py --real AD_NC/test --fake out --train AD_NC/train --resolution 64",
    )
    slices = Group(parser, "slices")
    slices.add(
        "--real",
        required=True,
        help="real slices, best those that no model was trained on: a folder of pictures at any depth, or one that holds AD/ "
        "and NC/",
    )
    slices.add("--fake", required=True, help="generated slices, likewise")
    slices.add("--train", help="the training set, likewise: also look for copies of it")
    slices.add("--classes", choices=("all", *CLASSES), default="all", help="of the folders that hold AD/ and NC/")
    slices.add("--num_images", type=number(int, NEIGHBOURS + 1), default=2000, help="at most so many of each")

    measure = Group(parser, "how they are compared")
    measure.add(
        "--resolution", type=int, choices=RESOLUTIONS, default=256, help="what is compared; larger pictures are reduced to it"
    )
    measure.add(
        "--features",
        choices=("vgg16", "inception"),
        default="vgg16",
        help="random VGG16, or ImageNet's Inception v3, which has to be downloaded",
    )
    measure.add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the draw, the features, the patches")

    other = Group(parser, "the rest")
    other.add("--output_dir", default="metrics", help="where metrics.json, metrics.png and nearest.png go")
    other.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    make_folder(args.output_dir, "--output_dir")
    real, fake = (
        load(flag, folder, args.classes, args.resolution, args.num_images, args.seed)
        for flag, folder in (("--real", args.real), ("--fake", args.fake))
    )
    train = args.train
    if train and holds_class(train):  # all of it: from the cache that training made
        try:
            train = Slices(train, args.classes, args.resolution)
        except UserError as error:
            raise UserError(str(error).replace("--dataset_dir", "--train")) from None
    elif train:
        train = load("--train", train, args.classes, args.resolution)
    found = study(real, fake, train, args.features, device, args.seed, progress=True)
    path = os.path.join(args.output_dir, "metrics.{}").format
    with atomic_path(path("json")) as temporary, open(temporary, "w") as file:
        json.dump({"values": found.values, "real": len(real), "fake": len(fake), "flags": vars(args)}, file, indent=2)
    save_metrics(found, path("png"))
    print(f"{len(fake)} generated against {len(real)} real slices at {args.resolution}x{args.resolution}, {args.features}")
    print(table(found.values))
    print(path("json"), path("png"), sep="\n")
    nearest_path = os.path.join(args.output_dir, "nearest.png")
    if found.memory:
        save_nearest(fake, train, found.memory, nearest_path)
        print(nearest_path)
    return 0


if __name__ == "__main__":
    run_cli(main)
