"""Look into trained models: grids of generated slices, real beside fake, single PNGs, and UMAPs of the style vectors.

    python predict.py --dataset_dir AD_NC/train --model_dir model
    python predict.py --plot_umap True --AD_dir AD --NC_dir NC

What a UMAP of w can carry: the w spaces of two models share nothing but what their mapping networks started with. Of two
seeds they lie wholly apart before any training; of one seed they start as equals and then drift. Neither gap is a finding
about the disease. `--control_dir` draws what a gap has to be held against: a second model of the AD class, trained with
another seed. The conditional model (`train.py --classes all --conditional True`), drawn when it lies under --model_dir, has
one w space for both classes, but keeps them apart from the start, since it is told the class: hold it against its epoch 0.
"""
import functools
import glob
import math
import os
import sys
from typing import NamedTuple

from flags import CLASSES, WEIGHTS, answer_early, parse_predict

if __name__ == "__main__":
    answer_early(parse_predict)                         # before PyTorch is imported

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import figures
from dataset import Slices, to_uint8
from modules import Generator, MappingNetwork, build_generator
from utils import UserError, atomic_path, make_folder, pick_device, random_stream, run_cli

BATCH = 16                      # images generated at once; always whole batches, so that --num_images changes no picture
EPOCHS_SHOWN = 0, 1 / 16, 3 / 8, 1      # shares of the training in the panel over epochs: 0, 5, 30, 80 of 80
CONDITIONAL = "all-conditional"
NOTE = ("Neighbours: 50% of the same class when both mix, 100% when they lie apart. Models of two seeds lie apart before any\n"
        "training, and a conditional model is told the class: no gap here is by itself a finding about AD and NC (see README).")


# ---------------------------------------------------------------------------------------------------------------------
# Runs on disk

class Model(NamedTuple):
    """The averaged networks of one run, in evaluation mode."""
    name: str
    mapping: MappingNetwork
    generator: Generator
    trained_on: list            # class names
    labels: list                # those it can be told, or [None]


def find_run(name, model_dir):
    """The folder of a run given by path or by its name under `model_dir`; UserError with the runs there are."""
    for folder in (name, os.path.join(model_dir, name)):
        if os.path.isfile(os.path.join(folder, "generator.pt")):
            return os.path.normpath(folder)
    raise UserError(f"no run {name}: looked for {name}/generator.pt and {os.path.join(model_dir, name)}/generator.pt; "
                    f"{describe_runs(model_dir)}")


def list_runs(model_dir):
    return sorted(os.path.basename(os.path.dirname(path)) for path in glob.glob(os.path.join(model_dir, "*", "generator.pt")))


def describe_runs(model_dir):
    runs = list_runs(model_dir)
    return f"--model_dir {model_dir} holds {', '.join(runs)}" if runs else \
        f"--model_dir {model_dir} holds no run yet (train.py makes one)"


def choose_runs(args):
    """Folders of the runs to draw: --model_dir itself, --classes, the two of the UMAP, `all`, or the only one there."""
    if os.path.isfile(os.path.join(args.model_dir, "generator.pt")) and not args.classes:
        return [os.path.normpath(args.model_dir)]
    if args.classes:
        return [find_run(args.classes, args.model_dir)]
    if args.plot_umap:
        return [find_run(args.AD_dir, args.model_dir), find_run(args.NC_dir, args.model_dir)]
    runs = list_runs(args.model_dir)
    if "all" not in runs and len(runs) != 1:
        raise UserError(f"{describe_runs(args.model_dir)}: say which with --classes" if runs else
                        describe_runs(args.model_dir))
    return [find_run("all" if "all" in runs else runs[0], args.model_dir)]


@functools.cache                                        # says its line once a run
def weights_file(folder, which):
    """The file of a run's last or best averaged generator; the last, with a note, where no best one was kept."""
    path = os.path.join(folder, WEIGHTS[which])
    if which == "last" or os.path.isfile(path):
        return path
    print(f"note: {folder} holds no {WEIGHTS[which]} (train.py --eval_every keeps one): its last generator is drawn",
          file=sys.stderr)
    return os.path.join(folder, WEIGHTS["last"])


def load_model(folder, device, which="last"):
    """Read the generator in <folder>; UserError when it is not one of ours."""
    path = weights_file(folder, which)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        networks = build_generator(saved["network"])
        networks.load_state_dict(saved["weights"])
    except Exception as error:
        raise UserError(f"{path}: not a generator that train.py saved ({type(error).__name__}: "
                        f"{str(error).splitlines()[0][:80]})") from None
    networks.to(device).eval().requires_grad_(False)
    labels = list(range(networks["mapping"].num_classes)) or [None]
    name = os.path.basename(os.path.abspath(folder))
    return Model(name, networks["mapping"], networks["generator"], saved["classes"], labels)


# ---------------------------------------------------------------------------------------------------------------------
# Generating

def draw_z(count, z_dim, seed):
    """`count` latents [count, z_dim] on the CPU; a larger count begins with the same ones."""
    return torch.randn(count, z_dim, generator=random_stream("latents", seed))


def style_vectors(mapping, z, label=None):
    """w [N, w_dim] of latents z [N, z_dim], all of one class or of none (None); and their labels [N], or None."""
    labels = None if label is None else torch.full([len(z)], label, dtype=torch.long, device=z.device)
    return mapping(z, labels), labels


@torch.no_grad()
def generate(model, count, seed, truncation=1., label=None, device="cpu"):
    """Yield `count` generated slices in batches, uint8 [n, R, R] with n <= BATCH; a function of its arguments alone."""
    whole = -(-count // BATCH) * BATCH
    rng = random_stream("noise", seed, device)
    for z in draw_z(whole, model.mapping.z_dim, seed).to(device).split(BATCH):
        w, labels = style_vectors(model.mapping, z, label)
        images = model.generator(model.mapping.truncate(w, truncation, labels), noise="random", rng=rng)
        yield to_uint8(images).cpu().numpy()[:count]
        count -= BATCH


def draw_grids(model, args, device):
    """Write <run>_generated.png and, given --dataset_dir, <run>_fake_vs_real.png, each class of a conditional model under
    its own caption; returns the paths."""
    grids, reals = {}, {}
    for label in model.labels:
        classes = model.trained_on if label is None else [CLASSES[label]]
        name = " and ".join(classes)
        grids[f"generated, {name}"] = np.concatenate(
            list(generate(model, args.num_images, args.seed, args.truncation, label, device)))
        if args.dataset_dir:
            slices = Slices(args.dataset_dir, "all" if len(classes) > 1 else classes[0], model.generator.resolution)
            reals[f"real, {name}"] = figures.spread(slices, args.num_images)
    columns = max(4, math.ceil(math.sqrt(args.num_images)))
    pictures = {"generated": grids, "fake_vs_real": grids | reals} if args.dataset_dir else {"generated": grids}
    paths = [os.path.join(args.output_dir, f"{model.name}_{name}.png") for name in pictures]
    for path, shown in zip(paths, pictures.values()):
        figures.save_grids(shown, path, columns)
    return paths


def export(model, args, device):
    """Write --export single PNGs to <output_dir>/<run>/ (conditional: as many into AD/ and NC/ below); returns the folders."""
    folders = []
    for label in model.labels:
        folder = os.path.join(args.output_dir, model.name, *([] if label is None else [CLASSES[label]]))
        make_folder(folder, "--output_dir")
        if extra := [name for name in os.listdir(folder) if name.endswith(".png") and not name < f"{args.export:06d}.png"]:
            raise UserError(f"{folder} holds {len(extra)} PNGs beyond --export {args.export} from an earlier export: "
                            "remove them or choose another --output_dir")
        with tqdm(total=args.export, unit=" images", desc=f"export {folder}") as bar:
            for images in generate(model, args.export, args.seed, args.truncation, label, device):
                for image in images:
                    with atomic_path(os.path.join(folder, f"{bar.n:06d}.png")) as path:
                        Image.fromarray(image).save(path, format="PNG")
                    bar.update()
        folders.append(folder)
    return folders


# ---------------------------------------------------------------------------------------------------------------------
# UMAP

def neighbours_alike(points, classes, k=15):
    """Mean share of each point's k nearest neighbours that have its own class: 0.5 when two even classes mix, 1 when apart.

    points [N, D], classes [N]; measured in the space given, before any UMAP.
    """
    points = torch.as_tensor(points, dtype=torch.float64)
    distance = torch.cdist(points, points).fill_diagonal_(float("inf"))
    nearest = distance.topk(k, largest=False).indices.numpy()                           # [N, k]
    return (classes[nearest] == classes[:, None]).mean()


def embed(sets, seed):
    """UMAP of style vectors. sets: {class name: [n, w_dim]} -> ({class name: [n, 2]}, neighbours_alike in w)."""
    import umap                                                                         # 20 s, so only here
    points = np.concatenate(list(sets.values()))
    classes = np.repeat(np.arange(len(sets)), [len(points) for points in sets.values()])
    flat = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(points)
    return {name: flat[classes == i] for i, name in enumerate(sets)}, neighbours_alike(points, classes)


def read_styles(folder):
    """{epoch: path} of a run's styles/."""
    return {int(path[-8:-4]): path for path in glob.glob(os.path.join(folder, "styles", "epoch_[0-9][0-9][0-9][0-9].npy"))}


def epochs_to_show(epochs):
    """Up to four of the epochs at hand, nearest to EPOCHS_SHOWN of the last."""
    epochs = sorted(epochs)
    if not epochs:
        return []
    return sorted({min(epochs, key=lambda epoch: abs(epoch - share * epochs[-1])) for share in EPOCHS_SHOWN})


def style_sets(runs, which, seed, device):
    """{legend: w [512, w_dim]} of the trained models: of each of `runs`, or of each class of one conditional run."""
    if isinstance(runs, str):
        mapping = load_model(runs, device, which).mapping
        networks = {name: (mapping, label) for label, name in enumerate(CLASSES)}
    else:
        networks = {name: (load_model(folder, device, which).mapping, None) for name, folder in runs.items()}
    return {name: style_vectors(mapping, draw_z(512, mapping.z_dim, seed).to(device), label)[0].cpu().numpy()
            for name, (mapping, label) in networks.items()}


def style_history(runs):
    """[(epoch, {legend: w [512, w_dim]})] at up to four epochs that all of `runs` kept in styles/."""
    if isinstance(runs, str):
        paths = read_styles(runs)
        return [(epoch, dict(zip(CLASSES, np.load(paths[epoch])))) for epoch in epochs_to_show(paths)]
    paths = {name: read_styles(folder) for name, folder in runs.items()}
    common = set.intersection(*map(set, paths.values()))
    return [(epoch, {name: np.load(kept[epoch]) for name, kept in paths.items()}) for epoch in epochs_to_show(common)]


def plot_umaps(args, device):
    """Write umap.png and umap_epochs.png of the runs that the flags name; returns the paths."""
    ad, nc = find_run(args.AD_dir, args.model_dir), find_run(args.NC_dir, args.model_dir)
    lines = {"two models": {"AD": ad, "NC": nc}}        # {title: {legend: folder}}, or one folder for both classes
    if args.control_dir:
        lines["control: AD twice"] = {"AD": ad, "AD, other seed": find_run(args.control_dir, args.model_dir)}
    shared = os.path.join(args.model_dir, CONDITIONAL)
    if os.path.isfile(os.path.join(shared, "generator.pt")):
        lines["one conditional model"] = shared
    now = [style_sets(runs, args.which, args.seed, device) for runs in lines.values()]
    history = {title: kept for title, runs in lines.items() if (kept := style_history(runs))}
    jobs = tqdm(total=len(now) + sum(map(len, history.values())), desc="UMAP", unit=" panels")

    def panel(title, sets):
        points, alike = embed(sets, args.seed)
        jobs.update()
        return title, points, alike

    pictures = {"umap.png": {"": list(zip(lines, now))},
                "umap_epochs.png": {title: [(f"{title}, epoch {epoch}", sets) for epoch, sets in kept]
                                    for title, kept in history.items()}}
    paths = [os.path.join(args.output_dir, name) for name, panels in pictures.items() if panels]
    with jobs:
        for path, panels in zip(paths, pictures.values()):
            figures.plot_panels([[panel(*one) for one in line] for line in panels.values()], path, NOTE)
    return paths


# ---------------------------------------------------------------------------------------------------------------------
# The command line

def main(argv=None):
    args = parse_predict(argv)
    device = pick_device(args.device)
    if args.plot_umap:                                  # a wrong name is better found before the work than after it
        for run in filter(None, (args.AD_dir, args.NC_dir, args.control_dir)):
            if load_model(find_run(run, args.model_dir), device, args.which).mapping.num_classes:
                raise UserError(f"{run} is a conditional model: --AD_dir, --NC_dir and --control_dir take models of one class "
                                f"({CONDITIONAL} under --model_dir is drawn by itself)")
    models = [load_model(folder, device, args.which) for folder in choose_runs(args)]
    make_folder(args.output_dir, "--output_dir")
    written = []
    for model in models:
        written += draw_grids(model, args, device)
        if args.export:
            written += export(model, args, device)
    if args.plot_umap:
        written += plot_umaps(args, device)
    print("\n".join(written))
    return 0


if __name__ == "__main__":
    run_cli(main)
