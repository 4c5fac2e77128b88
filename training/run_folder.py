"""What a training run keeps in its folder, and how it goes on from there; `train.py` decides when.

config.json  checkpoint.pt  previous.pt  generator.pt  best.pt  losses.csv  evaluations.csv  losses.png
loss_proportion.png  trouble.txt  lock  fake_vs_real/epoch_NNNN.png  styles/epoch_NNNN.npy
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import operator
import os
import socket
import sys

import torch
from tqdm import tqdm

from analysis import figures
from utils import CLASSES, LARGEST, RESOLUTIONS, UserError, atomic_path, make_folder, random_stream

PICTURES, STYLES = 16, 512  # fixed latents drawn in fake_vs_real/ and mapped in styles/
CHECKPOINTS = "checkpoint.pt", "previous.pt"  # the newest, and the one before it
LEARNING = (
    "loss",
    "lambda_gp",
    "gp_every",
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
)  # flags that change how a run goes on
FORMAT = 1  # of a checkpoint; another one cannot be gone on from


class Run:
    """The files of one run: saved so that a reader or a crash only ever meets whole ones, and read back to go on.

    parts: everything with a state_dict that goes on from a checkpoint, by name; rng: the generator of latents and noise;
    tables: {"losses": columns of losses.csv, "evaluations": of evaluations.csv}. lr_scale: 1, or less after the run went back.
    leading: of several processes one alone writes; the others only read.
    """

    def __init__(self, folder, config, slices, device, averaged, parts, rng, tables, tensorboard=False, leading=True):
        self.folder, self.config, self.slices, self.device = folder, config, slices, device
        self.averaged, self.parts, self.rng, self.tables = averaged, parts, rng, tables
        self.seconds, self.skipped, self.lr_scale = 0.0, 0, 1.0
        self.saved_images, self.rows = None, {name: [] for name in tables}
        self.exists = has_checkpoint(folder)
        self.leading, self.writer = leading, open_tensorboard(folder) if tensorboard and leading else None
        fixed = random_stream("fixed latents", 0)  # the same in every run
        self.z = torch.randn(STYLES, config["network"]["z_dim"], generator=fixed).to(device)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    # -----------------------------------------------------------------------------------------------------------------
    # Going on

    def resume(self):
        """Load the newest whole checkpoint into the parts and cut the tables there; returns the number of images shown so far."""
        state = self.read_checkpoint()
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
                if isinstance(part, torch.optim.Optimizer):
                    lay_out(part)
            self.seconds, self.skipped, self.lr_scale = float(state["seconds"]), int(state["skipped"]), float(state["lr_scale"])
            if not (0 <= self.seconds < 1e10 and self.skipped >= 0 and 0 < self.lr_scale <= 1):
                raise ValueError
            if state["rng_device"] == self.device.type:
                self.rng.set_state(state["rng"])
            else:
                moved = random_stream("moved training", state["images"], self.device)  # between CPU and CUDA
                self.rng.set_state(moved.get_state())
        except Exception as error:
            raise UserError(
                f"{self.path('checkpoint.pt')} does not fit these networks ({type(error).__name__}); --resume False "
                "starts anew and keeps the old folder under another name"
            ) from None
        self.saved_images = state["images"]
        for name in self.tables:
            self.rows[name] = self.read_table(name)
            if self.leading:
                self.write_table(name)
        return state["images"]

    def read_checkpoint(self):
        """The newest of CHECKPOINTS that is whole; UserError when there is none, or it is of another FORMAT."""
        faults = []
        for name in CHECKPOINTS:
            try:
                if not os.path.isfile(self.path(name)):  # a pipe would be waited for
                    raise FileNotFoundError
                state = torch.load(self.path(name), map_location="cpu", weights_only=True)
                whole = state.pop("digest", None) == digest(state) and state.get("images", 0) >= 0
            except Exception as error:
                faults.append(f"{name} cannot be read ({type(error).__name__})")
                continue
            if state.get("format") != FORMAT:
                raise UserError(
                    f"{self.path(name)} is of another version of this code (format {state.get('format')}, here "
                    f"{FORMAT}); --resume False starts anew and keeps the old folder under another name"
                )
            if whole:
                if faults and self.leading:
                    print(
                        f"warning: {self.folder}: {faults[0]}; going on from the checkpoint before it, at "
                        f"{state['images'] / 1000:.1f} kimg",
                        file=sys.stderr,
                    )
                return state
            faults.append(f"{name} is damaged (its checksum is another)")
        raise UserError(
            f"{self.folder}: {', and '.join(faults)}; --resume False starts anew and keeps the old folder under another name"
        )

    def go_back(self, why):
        """Return to the checkpoint at half the learning rate, once in a run's life; UserError the second time."""
        if self.lr_scale < 1:
            raise UserError(
                f"{self.folder}: {why} again, after going back once already; the state saved at "
                f"{self.saved_images / 1000:.1f} kimg is kept, run again with a lower --lr to go on from it"
            )
        images = self.resume()
        self.lr_scale = 0.5
        self.tell(f"{why}: gone back to {images / 1000:.1f} kimg and on with half the learning rate")
        return images

    def read_table(self, name):
        """Rows of a table up to the checkpoint; none if there is no such file, and without a row that a crash cut short or that
        holds what no float32 does, which no picture could be drawn of."""
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
    # Logs

    def log(self, name, row):
        """Append a row, {column: number}, to a table in memory, on disk and in TensorBoard."""
        if not self.leading:
            return
        values = [row[column] for column in self.tables[name]]
        self.rows[name].append(values)
        with open(self.path(name + ".csv"), "a", newline="") as file:
            csv.writer(file).writerow(_digits(values))
        if self.writer:
            for column, value in row.items():
                self.writer.add_scalar(f"{name}/{column}", value, row["images"])
            self.writer.flush()

    def tell(self, line):
        """Say a line about this run above the progress bar, and keep it in trouble.txt."""
        if not self.leading:
            return
        tqdm.write(f"{self.folder}: {line}")
        with open(self.path("trouble.txt"), "a") as file:
            file.write(line + "\n")

    def write_table(self, name):
        with atomic_path(self.path(name + ".csv")) as path, open(path, "w", newline="") as file:
            csv.writer(file).writerows([self.tables[name], *map(_digits, self.rows[name])])

    # -----------------------------------------------------------------------------------------------------------------
    # Saving

    def start(self):
        """Make the folders of a new run and save its state before the first step."""
        if not self.leading:
            return
        make_folder(self.path("fake_vs_real"), "--model_dir")
        make_folder(self.path("styles"), "--model_dir")
        for name in self.tables:
            self.write_table(name)
        with atomic_path(self.path("config.json")) as path, open(path, "w") as file:
            json.dump(self.config, file, indent=2)
        self.save(0, 0)

    def save(self, images, epoch):
        """Write checkpoint, generator and pictures, these under the number of the epoch that is done or under way."""
        before, self.saved_images = self.saved_images, images
        if images == before or not self.leading:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()} | {
            "format": FORMAT,
            "images": images,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "lr_scale": self.lr_scale,
            "rng": self.rng.get_state(),
            "rng_device": self.device.type,
        }
        newest, before = map(self.path, CHECKPOINTS)
        with atomic_path(newest, sync=True) as path:
            save_tensors(state | {"digest": digest(state)}, path)
            if os.path.exists(newest):  # a kill between the two renamings leaves the one before alone
                os.replace(newest, before)
        self.save_generator("generator.pt", images)
        self.draw(images, epoch)
        if self.rows["losses"]:
            tables = {name: figures.columns(self.rows[name], columns) for name, columns in self.tables.items()}
            figures.plot_dashboard(tables["losses"], tables["evaluations"], self.path("losses.png"))
            figures.plot_loss_proportion(tables["losses"], self.path("loss_proportion.png"))

    def save_generator(self, name, images):
        with atomic_path(self.path(name), sync=True) as path:
            save_tensors(
                {
                    "network": self.config["network"],
                    "classes": self.config["classes"],
                    "images": images,
                    "weights": self.averaged.state_dict(),
                },
                path,
            )

    def log_evaluation(self, row):
        """Append a row to evaluations.csv, and keep the averaged generator as best.pt if its KID is the lowest so far."""
        kids = [values[self.tables["evaluations"].index("kid")] for values in self.rows["evaluations"]]
        if row["kid"] < min(kids, default=math.inf):
            self.save_generator("best.pt", row["images"])
        self.log("evaluations", row)

    @torch.no_grad()
    def draw(self, images, epoch):
        """fake_vs_real/epoch_NNNN.png and styles/epoch_NNNN.npy, float32 [512, w_dim] (conditional: [2, 512, w_dim])."""
        mapping, generator = self.averaged["mapping"], self.averaged["generator"]
        classes = range(len(CLASSES)) if mapping.num_classes else [None]
        w = torch.stack(
            [mapping(self.z, None if c is None else torch.full_like(self.z[:, 0], c, dtype=torch.long)) for c in classes]
        )  # [classes, 512, w_dim]
        figures.save_array(w.squeeze(0).cpu().numpy(), self.path("styles", f"epoch_{epoch:04d}.npy"))
        w = w[:, : PICTURES // len(classes)].flatten(0, 1)
        fake = torch.cat([generator(part, noise="fixed") for part in w.split(4)])
        figures.save_fake_and_real(
            fake, self.slices, f"epoch {epoch}, {images / 1000:.1f} kimg", self.path("fake_vs_real", f"epoch_{epoch:04d}.png")
        )


def save_tensors(state, path):
    """torch.save by way of memory: on a full disk it would raise something of its own, and not the OSError."""
    whole = io.BytesIO()
    torch.save(state, whole)
    with open(path, "wb") as file:
        file.write(whole.getbuffer())


def digest(state):
    """SHA-256 of nested dicts, lists and tuples of tensors and plain values; a zip file's own checksums PyTorch does not read."""
    found = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().numpy())
        elif isinstance(value, (dict, list, tuple)):
            found.update(f"{len(value)} of".encode())
            for part in value.items() if isinstance(value, dict) else value:
                add(part)
        else:
            found.update(repr(value).encode())

    add(state)
    return found.hexdigest()


def lay_out(optimizer):
    """Give loaded moments the memory layout of their weights: fused Adam goes through both as they lie, whatever their strides."""
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == weight.shape:
                moments[name] = torch.empty_like(weight).copy_(value)


def _digits(row):
    return [f"{value:.6g}" if isinstance(value, float) else value for value in row]


def open_tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard True: the package tensorboard is not installed (pip install tensorboard)") from None
    return SummaryWriter(os.path.join(folder, "tensorboard"))


# ---------------------------------------------------------------------------------------------------------------------
# Which run a folder holds


def has_checkpoint(folder):
    return any(os.path.exists(os.path.join(folder, name)) for name in CHECKPOINTS)


def hold(folder):
    """Lock a run's folder for this process; returns the open lock file, which the caller keeps. UserError if it is taken.

    The system lets go of the lock when the process ends, however it does, so that none is ever left behind. What a killed process
    had half written is removed.
    """
    lock = open(os.path.join(folder, "lock"), "a+")
    try:
        import fcntl  # not on Windows, where nothing is locked

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "just started"
        raise UserError(
            f"{folder}: another train.py is at work on this run ({holder}): wait for it, stop it, or choose another --model_dir"
        ) from None
    lock.seek(0)
    lock.truncate()
    print(f"process {os.getpid()} on {socket.gethostname()}", file=lock, flush=True)
    for part, _, names in os.walk(folder):  # never through links
        for name in names:
            if name.startswith(".tmp-"):
                os.unlink(os.path.join(part, name))
    return lock


UNREADABLE = OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError  # what a config.json may raise


def kept_network(folder):
    """The settings of the networks in `folder`, {} if there is no run or it cannot be read (`check_same_run` says so)."""
    with contextlib.suppress(*UNREADABLE), open(os.path.join(folder, "config.json")) as file:
        network = json.load(file)["network"]
        network = {
            name: operator.index(network[name])
            for name in ("resolution", "channel_base", "channel_max", "z_dim", "w_dim", "num_classes")
        }
        if (
            network["resolution"] in RESOLUTIONS
            and all(0 < network[name] <= most for name, most in LARGEST.items())
            and network["num_classes"] in (0, len(CLASSES))
        ):
            return network
    return {}


def check_same_run(folder, config):
    """Raise a UserError that names the flags by which `config` differs from the run in `folder` in network or data.

    Returns what it trains with otherwise from now on, as text: a run may go on with another learning rate, or PyTorch.
    """
    try:
        with open(os.path.join(folder, "config.json")) as file:
            kept = json.load(file)
        new, old = config["network"], kept["network"]
        differing = [
            f"--{key} {new[key]} (was {old[key]})" for key in ("resolution", "channel_base", "channel_max") if new[key] != old[key]
        ]
        if kept["data"]["fingerprint"] != config["data"]["fingerprint"]:
            differing.append(
                f"--dataset_dir {config['flags']['dataset_dir']} (other slices than "
                f"{kept['flags']['dataset_dir']} held: {kept['data']['counts']}, now {config['data']['counts']})"
            )
        new, old = config["flags"], kept["flags"]
        changed = [f"--{key} {new[key]} (was {old.get(key)})" for key in LEARNING if new[key] != old.get(key)]
        if config["torch"] != kept["torch"]:
            changed.append(f"PyTorch {config['torch']} (was {kept['torch']})")
    except UNREADABLE as error:
        raise UserError(f"{folder}/config.json cannot be read ({error}); --resume False starts anew") from None
    if differing:
        raise UserError(
            f"{folder} holds another run, differing in {', '.join(differing)}: choose another --model_dir, or "
            "--resume False to set the old run aside"
        )
    return changed


def set_aside(folder):
    """Rename the folder of an old run to the first free <folder>.1, <folder>.2, ..."""
    free = next(i for i in range(1, 10**6) if not os.path.exists(f"{folder}.{i}"))
    os.rename(folder, f"{folder}.{free}")
    print(f"the run in {folder} is now {folder}.{free}")
