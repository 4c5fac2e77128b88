"""Find and load trained models, generate images with them, make a small copy of a run to share, and take over others' weights.

    python -m analysis.models model/all-conditional models/all-conditional
    python -m analysis.models G_ema.pt model/peer       # NVlabs' or rosinality's weights, see peers.py

model = load_model(find_run("AD", "model"), device)
images = np.concatenate(list(generate(model, 16, seed=0)))           # uint8 [16, R, R]
"""

import os
import shlex
import sys
from typing import NamedTuple

import numpy as np
import torch

from analysis.peers import convert
from dataset import to_uint8
from modules import Generator, MappingNetwork, build_generator
from utils import (
    CLASSES,
    ArgumentParser,
    UserError,
    atomic_path,
    check_network,
    checksum,
    load_tensors,
    make_folder,
    random_stream,
    run_cli,
    save_tensors,
)

WEIGHTS = {"last": "generator.pt", "best": "best.pt"}  # files of a run
BATCH = 16  # images generated at once, always in full batches, so that the number of images does not change any of them


# ---------------------------------------------------------------------------------------------------------------------
# Runs on disk


class Model(NamedTuple):
    """The averaged networks of one run, in evaluation mode, without gradients."""

    name: str
    mapping: MappingNetwork
    generator: Generator
    trained_on: list  # names of the classes
    labels: list  # the labels that it takes: [0, 1] if it is conditional, else [None]
    folder: str
    mirrored: bool = False  # whether it was trained on mirrored slices, too
    which: str = "last"  # of WEIGHTS
    images: int = 0  # real images that it had been shown in training
    values: tuple = ()  # names of what it is told beside the class, of utils.VALUES
    fingerprints: np.ndarray | None = None  # `fingerprints.training_record`; None if generator.pt has none

    @property
    def device(self):
        return self.mapping.w_mean.device

    @property
    def resolution(self):
        return self.generator.resolution

    @property
    def is_conditional(self):
        return self.labels != [None]

    @property
    def classes(self):
        """A name for each of `labels`: of the class, or "all" for a model of both classes that is not told which."""
        if self.is_conditional:
            return CLASSES
        return tuple(self.trained_on) if len(self.trained_on) == 1 else ("all",)


def holds_generator(folder):
    """Whether `folder` holds the generator of a run."""
    return os.path.isfile(os.path.join(folder, WEIGHTS["last"]))


def run_places(name, model_dir):
    """Where the run of this name or path may be, the first place first: a plain name under `model_dir`, any other path as it is."""
    under, plain = os.path.join(model_dir, name), os.path.basename(name) == name and name not in (os.curdir, os.pardir)
    return list(dict.fromkeys([under, os.path.join(os.curdir, name)] if plain else [name, under]))


def find_run(name, model_dir, flag=""):
    """The folder of the run of this name or path, at the first of its `run_places`.

    UserError, which names the `flag` that asks for the run and lists those under `model_dir`, if there is none.
    """
    places = run_places(name, model_dir)
    for folder in filter(holds_generator, places):
        tidy = os.path.normpath(folder)
        return tidy if os.path.realpath(tidy) == os.path.realpath(folder) else folder  # "link/.." may be anywhere
    near = [run for run in list_runs(model_dir) if run.casefold() == {"cn": "nc"}.get(name.casefold(), name.casefold())]
    looked, hint = (
        " and ".join(os.path.join(folder, WEIGHTS["last"]) for folder in places),
        f"; did you mean {near[0]}?" if near else "",
    )
    raise UserError(f"{flag} no run {name}: looked for {looked}; {describe_runs(model_dir)}{hint}".lstrip())


def list_runs(model_dir):
    """Sorted names of the runs under `model_dir`, without hidden folders; none if it cannot be looked into."""
    try:
        names = os.listdir(model_dir or os.curdir)
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith(".") and holds_generator(os.path.join(model_dir, name)))


def describe_runs(model_dir):
    """A sentence that names the runs under `model_dir`, for error messages."""
    if holds_generator(model_dir):
        return f"--model_dir {model_dir} is a run itself, not the folder of several"
    return f"--model_dir {model_dir} holds " + (", ".join(list_runs(model_dir)) or "no run yet (train.py makes one)")


def weights_file(folder, which):
    """Path of a run's "last" or "best" averaged generator; the last, with a note on stderr, if there is no best one."""
    path = os.path.join(folder, WEIGHTS[which])
    if which == "last" or os.path.isfile(path):
        return path
    note = f"note: {folder} holds no {WEIGHTS[which]} (train.py --eval_every writes it): the last generator is used instead"
    print(note, file=sys.stderr)
    return os.path.join(folder, WEIGHTS["last"])


def check_generator(saved):
    """Raise an error (of any type) unless `saved`, the content of generator.pt, is a generator with weights that fit it."""
    if "classes" not in saved:
        raise ValueError("it does not record the classes that it was trained on")
    network, classes = check_network(saved["network"]), saved["classes"]
    if not isinstance(saved.get("images", 0), int):
        raise ValueError(f"trained with {saved['images']} images")
    record = saved.get("fingerprints", torch.empty(0, dtype=torch.int32))
    if not isinstance(record, torch.Tensor) or record.dtype != torch.int32 or record.ndim != 1:
        raise ValueError("its fingerprints are no list of checksums")
    if classes not in (list(CLASSES), *([name] for name in CLASSES)):
        raise ValueError(f"trained on {classes}, not on AD, NC or both")
    if network["num_classes"] and len(classes) < 2:
        raise ValueError("conditional, but trained on one class")
    with torch.device("meta"):  # shapes without memory
        expected = build_generator(network).state_dict()
    weights = saved["weights"]
    if {name: x.shape for name, x in expected.items()} != {name: x.shape for name, x in weights.items()}:
        raise ValueError("its weights do not fit its network")
    if not all(x.isfinite().all() for name, x in weights.items() if name != "mapping.examples"):  # nan: an unknown value
        raise ValueError("its weights are not finite")


def read_generator(path):
    """The content of a generator.pt: "network", "classes", "images", "weights"; UserError if it is not a valid generator."""
    try:
        saved = load_tensors(path)
        check_generator(saved)
        return saved | {"network": check_network(saved["network"])}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, which the folder of a run holds") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
        raise UserError(
            f"{path}: not a generator that train.py saved ({reason}); copy it again, or continue its run with train.py, which "
            "writes it again"
        ) from None


def load_model(folder, device, which="last"):
    """The Model in a run's folder, its "last" or "best" weights, on `device`; UserError if the file is not a valid generator."""
    saved = read_generator(weights_file(folder, which))
    networks = build_generator(saved["network"])
    networks.load_state_dict(saved["weights"])  # float16 weights become float32
    networks.to(device).eval().requires_grad_(False)
    labels = list(range(networks["mapping"].num_classes)) or [None]
    name, mirrored = os.path.basename(os.path.abspath(folder)), saved.get("mirror", True)
    record = saved["fingerprints"].numpy() if "fingerprints" in saved else None
    facts = saved["classes"], labels, folder, mirrored, which, saved.get("images", 0), tuple(saved["network"]["values"]), record
    return Model(name, networks["mapping"], networks["generator"], *facts)


def weights_checksum(model):
    """SHA-256 of a Model's weights in float16, which a copy that `share` has written shares."""
    return checksum([{name: x.half() for name, x in part.state_dict().items()} for part in (model.mapping, model.generator)])


def short_checksum(model):
    """16 digits by which a Model's weights are told from those of an earlier state; not those of a copy in float16."""
    return checksum([model.mapping.state_dict(), model.generator.state_dict()])[:16]


def same_weights(*models):
    """Whether Models have equal weights, also where one of them is a copy that `share` has written, in float16."""
    return len(set(map(weights_checksum, models))) == 1


def share(folder, output_dir, which="last"):
    """Write a run's generator with float16 weights into output_dir/generator.pt, the last one with its critic.

    So a new run can start from the copy. Its images are those of the run that this one started from, too. A critic of a lower stage
    than the last, or whose blocks are new, is left out. Returns the path. UserError: not a valid generator or checkpoint, or
    output_dir holds a generator already.
    """
    saved, checkpoint = read_generator(weights_file(folder, which)), os.path.join(folder, "checkpoint.pt")
    if which == "last" and os.path.isfile(checkpoint):
        try:
            run = load_tensors(checkpoint)
            saved["images"] = run["images"] + run["images_before"]
            if run["stage"]["resolution"] == saved["network"]["resolution"] and not run["fade"]:
                saved["critic"] = run["critic"]
        except Exception as error:
            raise UserError(
                f"{checkpoint}: damaged ({type(error).__name__}); continue the run with train.py, which mends it"
            ) from None
    half = {part: {name: x.half() for name, x in saved[part].items()} for part in ("weights", "critic") if part in saved}
    return write_generator(saved | half, output_dir)


def adopt(file, output_dir, classes):
    """Write other code's weights (see `peers.convert`) into output_dir/generator.pt; returns the path. UserError as there."""
    saved = convert(file, classes)
    try:
        check_generator(saved)
    except Exception as error:
        raise UserError(f"{file}: cannot become a generator of this project: {error}") from None
    return write_generator(saved, output_dir)


def write_generator(saved, output_dir):
    """Write output_dir/generator.pt; returns the path. UserError: there is one already."""
    path = os.path.join(output_dir, WEIGHTS["last"])
    if os.path.exists(path):
        raise UserError(f"{path} exists: name another folder, or remove it first")
    make_folder(output_dir, "OUTPUT_DIR")
    with atomic_path(path) as temporary:
        save_tensors(saved, temporary)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Generating


def latents(z_dim, seed, batches, start=0):
    """Yield batches number `start` to `batches` - 1 of the latents of a seed, each [BATCH, z_dim] on the CPU."""
    rng = random_stream("latents", seed)
    for batch in range(batches):
        z = torch.randn(BATCH, z_dim, generator=rng)
        if batch >= start:
            yield z


def draw_z(count, z_dim, seed):
    """The first `count` latents of a seed [count, z_dim], on the CPU."""
    return torch.cat(list(latents(z_dim, seed, -(-count // BATCH))))[:count]


def style_vectors(mapping, z, label=None, held=False):
    """The style vectors w [N, w_dim] of latents z [N, z_dim] of one class, and their labels, or None; held: as of `labels_of`."""
    if label is None:
        return mapping(z), None
    labels = mapping.labels_of(z, torch.full([len(z)], label, dtype=torch.long, device=z.device), held)
    return mapping(z, labels), labels


@torch.no_grad()
def generate(model, count, seed, truncation=1.0, label=None, start=0):
    """Yield `count` generated images in batches, uint8 [n, R, R] with n <= BATCH; the batches before number `start` are skipped.

    Image number i is the same for every `count` and `start`.
    """
    batches = -(-count // BATCH)
    for batch, z in enumerate(latents(model.mapping.z_dim, seed, batches, start), start):
        rng = random_stream(f"noise {batch}", seed, model.device)
        w, labels = style_vectors(model.mapping, z.to(model.device), label)
        images = model.generator(model.mapping.truncate(w, truncation, labels), noise="random", rng=rng)
        yield to_uint8(images).cpu().numpy()[: count - batch * BATCH]


@torch.no_grad()
def synthesize(model, ws, noise="fixed", rng=None):
    """The images uint8 [N, R, R] of style vectors [N, w_dim], or one per layer [N, num_ws, w_dim].

    With "fixed" noise (see modules.StyleBlock) the images differ by their style vectors alone.
    """
    return np.concatenate([to_uint8(model.generator(part, noise, rng)).cpu().numpy() for part in ws.split(BATCH)])


# ---------------------------------------------------------------------------------------------------------------------
# The command


def main(argv=None):
    text = "Copy the generator of a run, and the critic of its last one, in float16, to share them; or take over others' weights."
    lines = "-m analysis.models model/all-conditional models/all-conditional", "-m analysis.models G_ema.pt model/AD --classes AD"
    parser = ArgumentParser(text, *lines)
    parser.prog = "-m analysis.models"
    parser.add_argument("run", help="folder of a run, or a file of NVlabs' or rosinality's weights (analysis/peers.py)")
    parser.add_argument("output_dir", help="folder for its generator.pt")
    parser.add_argument("--which", choices=tuple(WEIGHTS), default="last", help="the last generator, or that of the lowest KID")
    text = "what such a file was trained on; of its two labels, 0 is AD and 1 is NC"
    parser.add_argument("--classes", choices=("all", *CLASSES), default="all", help=text)
    args = parser.parse_args(argv)
    run = os.path.normpath(args.run)
    if os.path.isfile(run):
        path = adopt(run, args.output_dir, CLASSES if args.classes == "all" else (args.classes,))
    else:
        path = share(run, args.output_dir, args.which)
    parent = os.path.dirname(os.path.normpath(args.output_dir)) or "."
    print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB; predict.py --model_dir {shlex.quote(parent)} reads it")
    return 0


if __name__ == "__main__":
    run_cli(main)
