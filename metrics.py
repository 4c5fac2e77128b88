"""How good generated images are, in numbers that need no download: compared with real images and with the training set.

    python metrics.py --real AD_NC/test --fake predictions/AD --classes AD --train AD_NC/train
    python metrics.py --real AD_NC/test --fake predictions/all-conditional --map umap

--fake is a folder of images, such as `predict.py --export` writes; --real should hold images that no model was trained on.
Every value comes with its floor, which a perfect generator would reach: the same measure of as many training slices in place of
the generated ones, or, without --train, between two halves of the real set, of different people where known.
Values are not comparable with published ones, which use other features and images. 2,000 against 2,000 slices at 256x256
take two minutes on two CPU cores and 1.9 GB of memory. What is computed is in analysis/quality.py and analysis/distances.py.
"""

import startup  # noqa: F401  # isort: skip

import json
import os
import re
import sys
from collections import Counter

from utils import (
    CLASSES,
    RESOLUTIONS,
    ArgumentParser,
    Group,
    UserError,
    atomic_path,
    class_name,
    make_folder,
    number,
    parse_before_import,
    pick_device,
    printable,
    run_cli,
)


def parse_args(argv=None):
    parser = ArgumentParser(
        "Compare generated images with real ones: KID, precision, recall, spectra, memorisation, ...",
        "metrics.py --real AD_NC/test --fake out/AD --classes AD",
        "metrics.py --real AD_NC/test --fake out --train AD_NC/train --resolution 64",
    )
    images = Group(parser, "images")
    text = "real images, best those that no model was trained on: a folder of images at any depth, or one that holds AD/ and NC/"
    images.add("--real", required=True, help=text)
    images.add("--fake", required=True, help="generated images, likewise")
    images.add("--train", help="the training set, likewise: also look for copies of it")
    classes = {"type": class_name, "choices": ("all", *CLASSES), "default": "all"}
    images.add("--classes", help="which class to read from folders that hold AD/ and NC/", **classes)
    images.add("--subjects", metavar="CSV", help="LONI's CSV, or another table of the people of --real (docs/data.md)")
    images.add("--num_images", type=number(int, 6), default=2000, help="at most this many real and generated images")

    comparison = Group(parser, "comparison")
    comparison.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="size to compare at; larger images are reduced")
    text = "random VGG16, or Inception v3 trained on ImageNet, which has to be downloaded"
    comparison.add("--features", choices=("vgg16", "inception"), default="vgg16", help=text)
    text = "for a model of train.py --mirror True: mirror half of the real images, and look for mirrored copies"
    comparison.add_bool("--mirror", False, text)
    comparison.add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="for the choice of images, features and patches")

    other = Group(parser, "output and device")
    text = "also write atlas.html: a map of the features, by this method, in which every point shows its slice"
    other.add("--map", choices=("umap", "tsne", "pca"), nargs="?", const="umap", help=text)
    other.add("--output_dir", default="metrics", help="folder for metrics.json, metrics.png, nearest.png and atlas.html")
    other.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_before_import(parse_args)  # --help and typing errors need no PyTorch, which takes seconds to import

import numpy as np

from analysis.quality import measure_quality
from data.checks import check_brightness, warn_of_kinds
from data.damage import note_damaged
from data.decode import light_of, open_slice, pad_and_resize, read_files
from data.folders import class_folders, find_slices, holds_classes, missing_text, require_readable, some_of
from data.subjects import find_subjects, identify, resampled_text, resampling_groups, shared_text
from dataset import Slices
from report.atlas import write_quality_atlas
from report.quality_report import plot_quality, quality_table, save_nearest

# Pictures that commands of this project write, as the name of their folder and their own: predict.py's, metrics.py's, those of
# dataset.py and of the modules of training/ and analysis/ that are commands, and whole folders of train.py, predict.py, prepare.py.
PICTURES = re.compile(
    r"""[^/]*/(.+_)?(generated|fake_vs_real|mixing|sweep|interpolation|noise_map|pyramid|ganspace|sefa|morph|morph_mean)\.png
    |[^/]*/(.+_)?(critic|classifier|areas|(metrics|nearest)(_AD|_NC|_all)?)\.png
    |[^/]*/((umap|tsne|pca)(_epochs)?|styles|samples|losses|loss_proportion|augment|generator|style_block|discriminator)\.png
    |(fake_vs_real|.+_projected|steps)/.+\.png""",
    re.VERBOSE | re.DOTALL,
)
SMALLEST_PICTURE = 500  # pixels of its longer side


def is_picture(path, folder):
    """Whether the image at `path` below `folder` is a picture of many slices, a diagram, or a slice drawn for --styles."""
    parent, name = os.path.split(os.path.abspath(path))
    if os.path.basename(parent) == "styles" and os.path.isfile(parent + ".png"):
        return not os.path.samefile(parent, folder)
    if not PICTURES.fullmatch(f"{os.path.basename(parent)}/{name}"):
        return False
    try:
        with open_slice(path) as image:
            width, height = image.size
    except Exception:  # PIL raises nearly any error on a damaged file
        return False
    return max(width, height) >= SMALLEST_PICTURE and not width == height in RESOLUTIONS


def slice_paths(flag, folder, classes):
    """({class, or name of the folder: paths of the slices in `folder`, as `load` reads them}, paths of the pictures among them).

    UserError, which names `flag`.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{flag} {folder}: no such folder")
    folders = {os.path.basename(os.path.abspath(folder)): folder}
    if holds_class(folder):
        only = [name for name in CLASSES if classes == "all" and holds_classes(folder, name)]
        if len(only) == 1:
            missing = missing_text(folder, "all")
            raise UserError(f"{flag} {folder}: {missing}; --classes {only[0]} compares this class alone")
        folders = class_folders(folder, classes, flag)
    paths = {name: [os.path.join(parent, file) for file, *_ in find_slices(parent, flag)] for name, parent in folders.items()}
    pictures = {path for there in paths.values() for path in there if is_picture(path, folder)}
    return {name: sorted(set(there) - pictures) for name, there in paths.items()}, sorted(pictures)


def load(flag, folder, classes, resolution, count=None, seed=0):
    """Read the slices of `folder` in random order: (uint8 [N, R, R], their paths). Lines on stderr name what is doubtful.

    If it holds AD/ and NC/, `classes` ("all", "AD" or "NC") says which are read, else all at any depth are. Pictures of
    predict.py and train.py are left out. At most `count` are read, drawn with `seed`. UserError, which names `flag`: there is
    nothing to read, or --fake holds images of a generator with a resolution below `resolution` (other small images are upscaled,
    as for training).
    """

    def read(_, image, grey):
        return image.size, np.asarray(pad_and_resize(grey, resolution))

    paths_in, pictures = slice_paths(flag, folder, classes)
    paths = [path for there in paths_in.values() for path in there]
    left_out = some_of([os.path.relpath(path, folder) for path in pictures])
    if not paths:
        hint = "; predict.py --export N writes generated slices" if flag == "--fake" else ""
        raise UserError(f"{flag} {folder}: no slice in it, only pictures of many slices or diagrams: {left_out}{hint}")
    if pictures:
        note = f"note: {flag} {folder}: {len(pictures)} pictures of many slices or diagrams left out: {left_out}"
        print(printable(note), file=sys.stderr)
    paths = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))[:count]]
    results, status, levels, lights = {}, {}, {}, {}
    for name, there in paths_in.items():
        chosen = sorted(set(paths).intersection(there))
        found = read_files(chosen, read, label=f"reading {flag}", folder=there)
        results |= dict(zip(chosen, found.results))
        status[name], levels[name] = found.status, found.levels
        if chosen:
            require_readable(os.path.dirname(chosen[0]), found.status, list(map(os.path.basename, chosen)), flag)
            lights[name] = [light_of(result[1]) for result in found.results if result]
    if flag != "--fake":  # a poor generator's images may well be dark
        check_brightness(folder, lights, flag)
    if damaged := [os.path.basename(path) for path in paths if results[path] is None]:
        print(f"warning: {flag} {folder}: {len(damaged)} unreadable left out: {some_of(damaged)}", file=sys.stderr)
    warn_of_kinds(f"{flag} {folder}", status, levels)
    paths = [path for path in paths if results[path]]
    if flag == "--fake":
        check_sizes(folder, resolution, {os.path.relpath(path, folder): results[path][0] for path in paths})
    return np.stack([results[path][1] for path in paths]), paths


def check_sizes(folder, resolution, sizes):
    """Name generated images of other sizes than most, {name: (width, height)}; UserError if all are smaller than `resolution`."""
    usual = Counter(sizes.values()).most_common(1)[0][0]
    if odd := [name for name, size in sizes.items() if size != usual]:
        text = f"{len(odd)} of {len(sizes)} images are not of {usual[0]}x{usual[1]} pixels, so perhaps no slices: {some_of(odd)}"
        print(printable(f"warning: --fake {folder}: {text}"), file=sys.stderr)
    width, height = min(sizes.values())
    if width == height in RESOLUTIONS and width < resolution:
        raise UserError(f"--fake {folder} holds slices of {width}x{width}: compare them at --resolution {width}")


def load_train(folder, classes, resolution):
    """(the whole training set, its names): `Slices`, which use the cache that training made, or another folder's as an array."""
    if not holds_class(folder) or slice_paths("--train", folder, classes)[1]:
        return load("--train", folder, classes, resolution)
    slices = Slices(folder, classes, resolution, flag="--train")
    note_damaged(slices, slices.names, folder)
    return slices, slices.names


def holds_class(folder):
    """Is it a data set folder, or the folder above one (which `class_folders` refuses with a hint)?"""
    return any(holds_classes(place, name) for place in (folder, os.path.join(folder, "train")) for name in CLASSES)


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    make_folder(args.output_dir, "--output_dir")
    table = find_subjects(args.subjects, args.real)
    real, names = load("--real", args.real, args.classes, args.resolution, args.num_images, args.seed)
    note_damaged(real, names, args.real)
    scans = identify(names, table)
    groups, unit = resampling_groups(scans)
    fake, fake_names = load("--fake", args.fake, args.classes, args.resolution, args.num_images, args.seed)
    train, train_names = load_train(args.train, args.classes, args.resolution) if args.train else (None, [])
    train_scans = identify(train_names, table)
    train_groups, _ = resampling_groups(train_scans)
    quality = measure_quality(
        real, fake, train, args.features, device, args.seed, True, groups, train_groups if args.train else None, args.mirror
    )

    json_path, figure_path, nearest_path = (
        os.path.join(args.output_dir, name) for name in ("metrics.json", "metrics.png", "nearest.png")
    )
    with atomic_path(json_path) as temporary, open(temporary, "w") as file:
        counts = {"real": len(real), "fake": len(fake), "resampled": unit}
        values = {name: None if np.isnan(value) else value for name, value in quality.values.items()}  # JSON has no nan
        json.dump({"values": values, **counts, "flags": vars(args)}, file, indent=2)
    plot_quality(quality, figure_path)
    print(f"{len(fake)} generated against {len(real)} real slices at {args.resolution}x{args.resolution}, {args.features}")
    print(quality_table(quality))
    print(resampled_text(unit))
    if args.train:
        print(shared_text(train_scans, scans))
    print(json_path, figure_path, sep="\n")
    if quality.memory:
        save_nearest(fake, train, quality.memory, nearest_path)
        print(nearest_path)
    if args.map:
        page = os.path.join(args.output_dir, "atlas.html")
        write_quality_atlas(page, quality, real, fake, names, fake_names, args.map, args.seed, table)
        print(page)
    return 0


if __name__ == "__main__":
    run_cli(main)
