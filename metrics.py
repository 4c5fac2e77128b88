"""How good generated images are, in numbers that need no download: compared with real images and with the training set.

    python metrics.py --real AD_NC/test --fake predictions/AD --classes AD --train AD_NC/train
    python metrics.py --real AD_NC/test --fake predictions/all-conditional --map umap

--fake is a folder of images, such as `predict.py --export` writes; --real should hold images that no model was trained on.
Every value comes with its floor, which a perfect generator would reach: the same measure of as many training slices in place of
the generated ones, or, without --train, between two halves of the real set, of different people where known.
The FID and KID of --fid_weights alone, by the literature's InceptionV3, can be compared with published ones. Without it, 2,000
against 2,000 slices at 256x256 take two minutes on two CPU cores and 1.9 GB of memory. What is computed is in analysis/quality.py,
analysis/distances.py and analysis/inception.py.
"""

import startup  # noqa: F401  # isort: skip

import json
import os
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
    text = "for a model of train.py --mirror True: mirror half of the real images, and look for mirrored copies"
    comparison.add_bool("--mirror", False, text)
    text = "also FID and KID as others report them: inception-2015-12-05.pt, the TorchScript file of clean-fid, downloaded once"
    comparison.add("--fid_weights", metavar="FILE", help=text)
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

from analysis.distances import mirror_half
from analysis.inception import Inception, compare_features
from analysis.quality import measure_quality
from data.checks import check_brightness, warn_of_kinds
from data.damage import note_damaged
from data.decode import light_of, pad_and_resize, read_files
from data.folders import class_folders, find_slices, holds_classes, missing_text, require_readable, some_of
from data.subjects import find_subjects, identify, resampled_text, resampling_groups, shared_text
from dataset import Slices
from report.atlas import write_quality_atlas
from report.quality_report import inception_table, plot_quality, quality_table, save_nearest
from report.report import plain

LARGEST_SLICE = 512  # pixels of the longer side, unless it is one of RESOLUTIONS: --fake holds no larger ones, but pictures


def slice_paths(flag, folder, classes):
    """{class, or name of the folder: paths of the slices in `folder`, as `load` reads them}. UserError, which names `flag`."""
    if not os.path.isdir(folder):
        raise UserError(f"{flag} {folder}: no such folder")
    folders = {os.path.basename(os.path.abspath(folder)): folder}
    if holds_class(folder):
        only = [name for name in CLASSES if classes == "all" and holds_classes(folder, name)]
        if len(only) == 1:
            missing = missing_text(folder, "all")
            raise UserError(f"{flag} {folder}: {missing}; --classes {only[0]} compares this class alone")
        folders = class_folders(folder, classes, flag)
    return {name: sorted(os.path.join(parent, file) for file, *_ in find_slices(parent, flag)) for name, parent in folders.items()}


def load(flag, folder, classes, resolution, count=None, seed=0):
    """Read the slices of `folder` in random order: (uint8 [N, R, R], their paths). Lines on stderr name what is doubtful.

    If it holds AD/ and NC/, `classes` ("all", "AD" or "NC") says which are read, else all at any depth are. At most `count` are
    read, drawn with `seed`; of --fake, those of the usual size. UserError, which names `flag`: there is nothing to read, or
    `usual_size` refuses.
    """

    def read(_, image, grey):
        return image.size, np.asarray(pad_and_resize(grey, resolution))

    paths_in = slice_paths(flag, folder, classes)
    paths = [path for there in paths_in.values() for path in there]
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
        usual = usual_size(folder, resolution, [results[path][0] for path in paths])
        if odd := [os.path.relpath(path, folder) for path in paths if results[path][0] != usual]:
            text = f"{len(odd)} of {len(paths)} images are not of {usual[0]}x{usual[1]} pixels and left out: {some_of(odd)}"
            print(printable(f"warning: --fake {folder}: {text}"), file=sys.stderr)
            paths = [path for path in paths if results[path][0] == usual]
    return np.stack([results[path][1] for path in paths]), paths


def usual_size(folder, resolution, sizes):
    """The (width, height) that most of the generated images have; UserError if they are smaller than `resolution`, or pictures."""
    (width, height), _ = Counter(sizes).most_common(1)[0]
    slices = width == height in RESOLUTIONS
    if max(width, height) > LARGEST_SLICE and not slices:
        text = f"images of {width}x{height} pixels are pictures, not slices; predict.py --export N writes generated slices"
        raise UserError(f"--fake {folder}: {text}")
    if slices and width < resolution:
        raise UserError(f"--fake {folder} holds slices of {width}x{width}: compare them at --resolution {width}")
    return width, height


def load_train(folder, classes, resolution):
    """(the whole training set, its names): `Slices`, which use the cache that training made, or another folder's as an array."""
    if not holds_class(folder):
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
    inception = Inception(args.fid_weights, device) if args.fid_weights else None
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
    people = {"groups": groups, "train_groups": train_groups if args.train else None}
    quality = measure_quality(real, fake, train, device, args.seed, progress=True, mirror=args.mirror, **people)
    found = None
    if inception:
        shown = mirror_half(real, args.seed) if args.mirror else real
        features = (inception(images, f"Inception, {name}") for images, name in ((shown, "real"), (fake, "generated")))
        found = compare_features(*features, groups, progress=True)

    json_path, figure_path, nearest_path = (
        os.path.join(args.output_dir, name) for name in ("metrics.json", "metrics.png", "nearest.png")
    )
    with atomic_path(json_path) as temporary, open(temporary, "w") as file:
        counts = {"real": len(real), "fake": len(fake), "resampled": unit}
        values = {name: None if np.isnan(value) else value for name, value in quality.values.items()}  # JSON has no nan
        json.dump({"values": values, "inception": plain(found), **counts, "flags": vars(args)}, file, indent=2)
    plot_quality(quality, figure_path)
    print(f"{len(fake)} generated against {len(real)} real slices at {args.resolution}x{args.resolution}")
    print(quality_table(quality))
    if found:
        print(f"\nby {os.path.basename(args.fid_weights)}, resized to 299x299 as by clean-fid:")
        print(inception_table(found, (len(real), len(fake)), unit))
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
