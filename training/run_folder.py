"""The folder of a training run: what is written into it, and how a run resumes from it. train.py decides when.

config.json  checkpoint.pt  previous.pt  generator.pt  best.pt  losses.csv  evaluations.csv  losses.png
loss_proportion.png  trouble.txt  lock  fake_vs_real/epoch_NNNN.png  fake_vs_real/RxR.png  styles/epoch_NNNN.npy

Of a new run, the checkpoint is written first: a folder with anything else and no checkpoint holds a model that nothing may
overwrite.
"""

import contextlib
import csv
import json
import math
import os

import torch
from tqdm import tqdm

from data.folders import EXTENSIONS
from lock import Held, Lock
from report import figures
from training.checkpoint import FILES, START_ANEW, has_checkpoint, read_checkpoint, restore, write_checkpoint
from training.growth import Stage, enlarged, fade_state, restore_fade
from utils import (
    CLASSES,
    EARLIER_FLAGS,
    EARLIER_MAPPING_LAYERS,
    UserError,
    atomic_path,
    load_tensors,
    make_folder,
    naming,
    random_stream,
    read_config,
    reason,
    save_tensors,
    walk,
)

NAMES = (  # of what a run writes, but for its lock
    *(*FILES, "config.json", "generator.pt", "best.pt", "losses.csv", "evaluations.csv", "losses.png", "loss_proportion.png"),
    *("trouble.txt", "alerts.log", "fake_vs_real", "styles", "tensorboard"),
)
SHOWN, MAPPED = 16, 512  # fixed latents: drawn in fake_vs_real/, mapped to w in styles/
FLAGS_THAT_MATTER = (
    "grow",
    "loss",
    "lambda_gp",
    "gp_every",
    "n_critic",
    "mirror",
    "bounded",
    "batch_size",
    "lr",
    "lr_critic",
    "lr_decay",
    "augment",
    "augment_p",
    "style_mixing",
    "path_length",
    "ema_kimg",
    "seed",
    "amp",
    "deterministic",
)  # a change of these changes how a run continues, and is reported


class RunFolder:
    """Writes the files of a run so that a reader or a crash never meets half of one, and reads them to resume.

    config: what config.json holds; slices: real ones for fake_vs_real/; tables: {"losses": columns, "evaluations": columns};
    processes: only the leading one writes, the others read. Counted over the whole run: seconds of training, steps skipped.
    lr_scale: 1, or 0.5 after the run went back to a checkpoint. lr_decay: the smallest factor that --lr_decay has reached. stage:
    the growth.Stage that the run is in; first_resolution: that of its first stage; done: the largest share of it that was over.
    """

    def __init__(self, folder, config, slices, tables, processes, tensorboard=False):
        self.folder, self.config, self.slices, self.tables, self.processes = folder, config, slices, tables, processes
        self.seconds, self.skipped, self.lr_scale, self.lr_decay = 0.0, 0, 1.0, 1.0
        self.stage, self.first_resolution, self.done = None, None, 0.0
        self.saved_images, self.rows = None, {name: [] for name in tables}
        self.exists = has_run(folder)
        self.writer = open_tensorboard(folder) if tensorboard and processes.leading else None

    def path(self, *names):
        return os.path.join(self.folder, *names)

    # -----------------------------------------------------------------------------------------------------------------
    # Resuming

    def resume(self, new_state):
        """The TrainingState of the newest undamaged checkpoint, made by new_state(resolution); cuts the tables there."""
        saved = read_checkpoint(self.folder, warn=self.processes.leading)
        self.check_owner(saved)
        try:
            self.stage, self.first_resolution = Stage(**saved["stage"]), int(saved["first_resolution"])
            if not 8 <= self.stage.resolution <= self.config["network"]["resolution"]:
                raise ValueError
            state = new_state(self.stage.resolution)
            restore(state.parts, saved)
            restore_fade(state.critic, saved["fade"])
            self.seconds, self.skipped = float(saved["seconds"]), int(saved["skipped"])
            self.lr_scale, self.lr_decay, self.done = (float(saved[name]) for name in ("lr_scale", "lr_decay", "done"))
            if not (0 <= self.seconds < 1e10 and self.skipped >= 0 and 0 < self.lr_scale <= 1 and 0 <= self.lr_decay <= 1):
                raise ValueError
            if not (0 <= self.done <= 1 and 0 <= self.stage.images <= saved["images"]):
                raise ValueError
            self.restore_random_stream(state, saved)
        except Exception as error:
            raise UserError(
                f"{self.path('checkpoint.pt')} does not fit these networks ({type(error).__name__}); {START_ANEW}"
            ) from None
        self.saved_images = saved["images"]
        for name in self.tables:
            self.rows[name] = self.read_table(name)
        if self.processes.leading:
            self.make_folders_and_tables()
        return state

    def check_owner(self, saved):
        """UserError if the checkpoint, or generator.pt, was copied here from another run: the next save would overwrite a model."""
        classes, copied = self.config["classes"], None
        if saved.get("classes", classes) != classes:
            copied = f"{saved['file']} was trained on {' and '.join(saved['classes'])}"
        with contextlib.suppress(Exception):  # missing or damaged: it is written again
            generator = load_tensors(self.path("generator.pt"))
            if generator["classes"] != classes:
                copied = f"generator.pt was trained on {' and '.join(generator['classes'])}"
            elif saved["file"] == FILES[0] and generator["images"] > saved["images"]:
                copied = (
                    f"generator.pt is newer ({generator['images'] / 1000:.1f} kimg) than {FILES[0]} ({saved['images'] / 1000:.1f})"
                )
        if copied:
            raise UserError(f"{self.folder}: {copied}, so one of them was copied here; {START_ANEW}")

    def restore_random_stream(self, state, saved):
        """Continue this process's stream; a new one if the number of processes or the kind of device has changed."""
        streams, device = saved["rng"], state.rng.device
        if len(streams) == self.processes.size and saved["rng_device"] == device.type:
            state.rng.set_state(streams[self.processes.rank])
        else:
            new = state.new_random_stream(f"training from image {saved['images']} on {self.processes.size}", device)
            state.rng.set_state(new.get_state())

    def go_back(self, new_state, reason):
        """Return to the checkpoint, as `resume` does, with half the learning rate; UserError the second time in a run's life."""
        if self.lr_scale < 1:
            raise UserError(
                f"{self.folder}: {reason} again, after going back to a checkpoint once already; the checkpoint at "
                f"{self.saved_images / 1000:.1f} kimg is kept, run again with a lower --lr to continue from it"
            )
        state = self.resume(new_state)
        self.lr_scale = 0.5
        self.report(f"{reason}: went back to {self.saved_images / 1000:.1f} kimg and continues with half the learning rate")
        return state

    def read_table(self, name):
        """Rows of a table up to the checkpoint, without any that a crash cut short or that no float32 could hold."""
        rows, columns, largest = [], self.tables[name], torch.finfo(torch.float32).max
        with contextlib.suppress(OSError, ValueError, csv.Error), open(self.path(name + ".csv"), newline="") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) == columns:
                for row in reader:
                    rows.append([float(value) for value in row])
        return [
            row
            for row in rows
            if len(row) == len(columns)
            and row[columns.index("images")] <= self.saved_images
            and not any(abs(value) > largest for value in row)
        ]

    # -----------------------------------------------------------------------------------------------------------------
    # Tables and alerts

    def log(self, name, row):
        """Append a row, {column: number}, to a table in memory, on disk and in TensorBoard."""
        if not self.processes.leading:
            return
        values = [row[column] for column in self.tables[name]]
        self.rows[name].append(values)
        path = self.path(name + ".csv")
        with naming(path), open(path, "a", newline="") as file:
            csv.writer(file).writerow(_format(values))
        if self.writer:
            for column, value in row.items():
                self.writer.add_scalar(f"{name}/{column}", value, row["images"])
            self.writer.flush()

    def report(self, line):
        """Print a line about this run above the progress bar, and append it to trouble.txt."""
        if self.processes.leading:
            tqdm.write(f"{self.folder}: {line}")
            with naming(self.path("trouble.txt")), open(self.path("trouble.txt"), "a") as file:
                file.write(line + "\n")

    def write_table(self, name):
        with atomic_path(self.path(name + ".csv")) as path, open(path, "w", newline="") as file:
            csv.writer(file).writerows([self.tables[name], *map(_format, self.rows[name])])

    # -----------------------------------------------------------------------------------------------------------------
    # Saving

    def start(self, state):
        """Save the state of a new run before its first step, with all that the later ones are added to."""
        self.save(state, 0, 0)

    def make_folders_and_tables(self):
        make_folder(self.path("fake_vs_real"), "--model_dir")
        make_folder(self.path("styles"), "--model_dir")
        for name in self.tables:
            self.write_table(name)

    def save(self, state, images, epoch, stage_over=False):
        """Write checkpoint, generator, images and plots; `epoch`: the number in their file names. Collective."""
        self.processes.check_equal(state.averaged_weights)
        streams = self.processes.gather(state.rng.get_state())
        if images == self.saved_images:
            return
        self.saved_images = images
        if not self.processes.leading:
            return
        counters = {
            name: getattr(self, name) for name in ("seconds", "skipped", "lr_scale", "lr_decay", "first_resolution", "done")
        }
        counters |= {"stage": self.stage._asdict(), "fade": fade_state(state.critic.fade)}
        parts = {name: part.state_dict() for name, part in state.parts.items()}
        rng = {"rng": streams, "rng_device": state.rng.device.type}
        write_checkpoint(self.folder, parts | counters | rng | {"images": images, "classes": self.config["classes"]})
        if images == 0:
            with atomic_path(self.path("config.json")) as path, open(path, "w") as file:
                json.dump(self.config, file, indent=2)
            self.make_folders_and_tables()
        self.save_generator("generator.pt", state.averaged, images)
        self.save_samples(state.averaged, images, epoch, stage_over)
        if self.rows["losses"]:
            tables = {name: figures.columns(self.rows[name], columns) for name, columns in self.tables.items()}
            figures.plot_dashboard(tables["losses"], tables["evaluations"], self.path("losses.png"))
            figures.plot_loss_proportion(tables["losses"], self.path("loss_proportion.png"))

    def save_generator(self, name, averaged, images):
        """Write the averaged generator, always at the run's final resolution: in a lower stage it draws enlarged images."""
        state = {
            "network": self.config["network"],
            "classes": self.config["classes"],
            "images": images,
            "mirror": self.config["flags"]["mirror"],
            "weights": enlarged(averaged, self.config["network"]).state_dict(),
        }
        with atomic_path(self.path(name), sync=True) as path:
            save_tensors(state, path)

    def log_evaluation(self, row, averaged):
        """Append a row to evaluations.csv; save the averaged generator as best.pt if its KID is the lowest so far."""
        kids = [values[self.tables["evaluations"].index("kid")] for values in self.rows["evaluations"]]
        if row["kid"] < min(kids, default=math.inf):
            self.save_generator("best.pt", averaged, row["images"])
        self.log("evaluations", row)

    @torch.no_grad()
    def save_samples(self, averaged, images, epoch, stage_over):
        """fake_vs_real/epoch_NNNN.png and styles/epoch_NNNN.npy, float32 [512, w_dim] (class-conditional: [2, 512, w_dim]).

        The latents are the same in every run and at every epoch. The last picture of a stage before the final one is named after
        its size, fake_vs_real/32x32.png, so that no later one takes its place.
        """
        mapping, generator = averaged["mapping"], averaged["generator"]
        z = torch.randn(MAPPED, mapping.z_dim, generator=random_stream("fixed latents", 0)).to(generator.constant.device)
        labels = [torch.full([MAPPED], label, device=z.device) for label in range(mapping.num_classes)] or [None]
        w = torch.stack([mapping(z, label) for label in labels])  # [classes, 512, w_dim]
        figures.save_array(w.squeeze(0).cpu().numpy(), self.path("styles", f"epoch_{epoch:04d}.npy"))
        shown = w[:, : SHOWN // len(labels)].flatten(0, 1)
        fake = torch.cat([generator(part, noise="fixed") for part in shown.split(4)])
        size = generator.resolution
        picture = f"{size}x{size}" if stage_over else f"epoch_{epoch:04d}"
        title = f"epoch {epoch}, {images / 1000:.1f} kimg"
        figures.save_fake_and_real(fake, self.slices, title, self.path("fake_vs_real", f"{picture}.png"))


def _format(row):
    return [f"{value:.6g}" if isinstance(value, float) else value for value in row]


def open_tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard True: the package tensorboard is not installed (pip install tensorboard)") from None
    return SummaryWriter(os.path.join(folder, "tensorboard"))


# ---------------------------------------------------------------------------------------------------------------------
# Which run a folder holds


def run_files(folder):
    """Names in `folder` of what a run writes, but for its lock; a folder counts if there is anything in it."""
    paths = {name: os.path.join(folder, name) for name in NAMES}
    return [name for name, path in paths.items() if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path))]


def has_run(folder):
    """Whether `folder` holds a run that can be resumed. UserError if it holds anything of a run without a checkpoint."""
    names = run_files(folder)
    if names and not has_checkpoint(folder):
        raise UserError(
            f"{folder} holds {', '.join(names[:4])}{', ...' * (len(names) > 4)} of a run but no checkpoint.pt to resume it from, "
            "and is left as it is: choose another --model_dir for a new run, or --resume False, which renames this folder"
        )
    if names == [FILES[0]] and read_checkpoint(folder, warn=False).get("images") == 0:
        return False  # killed during its first save, before config.json
    return bool(names)


def find_run(folder, resume):
    """What a start means for `folder`: "resume" or "new", or without `resume` "rename" or "new"; UserError as in `has_run`."""
    if resume:
        return "resume" if has_run(folder) else "new"
    return "rename" if run_files(folder) else "new"


def check_place(folder, data):
    """UserError if a run in `folder` would lie among slices: those of `data`, {flag: folder that holds AD/ and NC/}, or others."""

    def within(path, other):
        return path == other or path.startswith(os.path.join(other, ""))

    place, asked = os.path.realpath(folder), f"--model_dir: the run's folder would be {folder}, which"
    for flag, path in data.items():
        data_dir = os.path.realpath(path)
        if within(data_dir, place) or any(within(place, os.path.join(data_dir, name)) for name in (*CLASSES, "CN")):
            raise UserError(f"{asked} belongs to the slices of {flag} {path}: choose another --model_dir")
    if os.path.isdir(folder) and not run_files(folder):
        for parent, names in walk(folder, "--model_dir"):
            if images := [name for name in names if name.lower().endswith(EXTENSIONS)]:
                raise UserError(f"{asked} holds other images ({os.path.join(parent, images[0])}): choose another --model_dir")


def lock_folder(folder):
    """The lock.Lock of a run's folder, held by this process until it ends or releases it; UserError if another holds it.

    Removes temporary files that a killed process left behind.
    """
    try:
        lock = Lock(os.path.join(folder, "lock"))
    except Held as held:
        raise UserError(
            f"{folder}: another train.py is training this run ({held.holder or 'just started'}): wait for it, stop it, or choose "
            f"another --model_dir{held.remedy}"
        ) from None
    for place in (folder, os.path.join(folder, "styles"), os.path.join(folder, "fake_vs_real")):
        if os.path.isdir(place) and (place == folder or not os.path.islink(place)):
            for name in os.listdir(place):
                if name.startswith(".tmp-"):
                    os.unlink(os.path.join(place, name))
    return lock


def check_same_run(folder, config):
    """UserError that names the flags by which `config` asks for another network or other data than the run in `folder`.

    Returns other flags that differ, as text: a run may continue with another learning rate, say, or another PyTorch.
    """
    try:
        with open(os.path.join(folder, "config.json")) as file:
            old_torch = json.load(file)["torch"]
        saved = read_config(folder)
        new, old = config["network"], {"mapping_layers": EARLIER_MAPPING_LAYERS} | saved["network"]
        differing = [
            f"--{name} {new[name]} (was {old[name]})"
            for name in ("resolution", "channel_base", "channel_max", "mapping_layers")
            if new[name] != old[name]
        ]
        if saved["data"]["fingerprint"] != config["data"]["fingerprint"]:
            differing.append(
                f"--dataset_dir {config['flags']['dataset_dir']} (its slices differ from those of "
                f"{saved['flags']['dataset_dir']}: {saved['data']['counts']}, now {config['data']['counts']})"
            )
        new, old = config["flags"], EARLIER_FLAGS | saved["flags"]
        changed = [f"--{name} {new[name]} (was {old.get(name)})" for name in FLAGS_THAT_MATTER if new[name] != old.get(name)]
        if config["torch"] != old_torch:
            changed.append(f"PyTorch {config['torch']} (was {old_torch})")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = f"it lacks {error}" if isinstance(error, KeyError) else reason(error) if isinstance(error, OSError) else error
        raise UserError(f"{folder}/config.json cannot be read ({text}); {START_ANEW}") from None
    if differing:
        raise UserError(
            f"{folder} holds another run, which differs in {', '.join(differing)}: choose another --model_dir, or "
            "--resume False to set the old run aside"
        )
    return changed


def set_aside(folder):
    """Rename the folder of an old run to the first free one of <folder>.1, <folder>.2, ..."""
    number = next(i for i in range(1, 10**6) if not os.path.lexists(f"{folder}.{i}"))
    os.rename(folder, f"{folder}.{number}")
    print(f"the run in {folder} is now {folder}.{number}")
