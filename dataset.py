"""Brain slices for training: decoded once into a cached uint8 array, served as shuffled batches in [-1, 1].

    AD_NC/train/AD/<scan>_<slice>.jpeg       Alzheimer's disease, label 0
    AD_NC/train/NC/<scan>_<slice>.jpeg       normal control, label 1

    slices = Slices("AD_NC/train", resolution=256)
    images, labels = next(batches(slices, batch_size=16, device="cpu", seed=0))   # [16, 1, 256, 256] and [16]

As a command, it reports on a data set before training: counts, sizes, damaged files, people, and what train and test share
(report/dataset_command.py). Squares are made by `data.decode.pad_and_resize`.
"""

import startup  # noqa: F401  # isort: skip

import copy
import os
from concurrent.futures import ThreadPoolExecutor

from utils import CLASSES, has_room, run_cli

if __name__ == "__main__":
    from report.dataset_command import main  # whose report imports this file

    run_cli(main)

import numpy as np
import torch

from data.cache import load_folder, short_hash
from data.checks import check_brightness, warn, warn_of_kinds
from data.decode import FIRST_KIND, light_of
from data.folders import list_slices, require_readable, warn_of_unreadable
from ops import resample

SAMPLED = 64  # slices of each class whose brightness is looked at


class Slices:
    """All readable slices of the chosen classes, uint8, decoded at first use and read from the cache after that.

    dataset_dir: the folder that holds AD and NC; classes: "all", "AD" or "NC"; resolution: side of the square, one of
    RESOLUTIONS; num_workers: decoding threads (None: one per core, up to 16); progress: show a bar on a terminal; flag: that
    gave `dataset_dir`, for errors.

    labels       int64 [N], the index of each slice's class in CLASSES
    values       float32 [N, k] that a model may be told beside the class, None unless someone sets them
    names        file names [N], such as "AD/218391_78.jpeg"; paths: where they lie
    counts       {class: number of slices}
    unreadable   names of the files left out, which one line on stderr also names; others name what else is doubtful
    fingerprint  16 hex digits of the names and sizes in bytes of the slices; moving the folder does not change it

    UserError if a folder is missing, or a class has no readable slice or is nearly black.
    """

    def __init__(
        self, dataset_dir, classes="all", resolution=256, num_workers=None, progress=True, flag="--dataset_dir", listed=None
    ):
        self.resolution, self.unreadable, self.counts, self._pixels, self._identities = resolution, [], {}, {}, []
        status, levels, bright, labels, rows, notes = {}, {}, {}, [], [], set()
        listed = listed or list_slices(dataset_dir, classes, flag)
        self._folders = {name: folder for name, (folder, _) in listed.items()}
        for name, (folder, files) in listed.items():
            bar, label = f"decoding {name}" if progress else None, CLASSES.index(name)
            pixels, status[name], levels[name], note = load_folder(folder, files, resolution, num_workers, bar)
            require_readable(folder, status[name], [file for file, *_ in files], flag)
            readable = np.flatnonzero(status[name] >= FIRST_KIND)
            bright[name] = [light_of(pixels[i]) for i in readable[:: -(-len(readable) // SAMPLED)]]
            self.unreadable += [f"{name}/{files[i][0]}" for i in np.flatnonzero(status[name] < FIRST_KIND)]
            self.counts[name], self._pixels[label] = len(readable), pixels
            self._identities += [(name, *files[i][:2]) for i in readable]
            rows.append(readable)
            labels.append(np.full(len(readable), label))
            notes.add(note)
        self.labels, self._rows, self.values = np.concatenate(labels).astype(np.int64), np.concatenate(rows), None
        self.names = [f"{name}/{file}" for name, file, _ in self._identities]
        self.fingerprint = short_hash(self._identities)
        for note in notes - {None}:
            warn(f"note: {note}")
        warn_of_unreadable(self.unreadable)
        warn_of_kinds(dataset_dir, status, levels)
        check_brightness(dataset_dir, bright, flag)

    def only(self, chosen):
        """The slices where `chosen`, bool [N], is True, as new Slices with the names, counts and fingerprint of these alone."""
        part = copy.copy(self)
        part.labels, part._rows = self.labels[chosen], self._rows[chosen]
        part.values = None if self.values is None else self.values[chosen]
        part._identities = [identity for identity, taken in zip(self._identities, chosen) if taken]
        part.names = [name for name, taken in zip(self.names, chosen) if taken]
        part.counts = {name: int((part.labels == CLASSES.index(name)).sum()) for name in self.counts}
        part.fingerprint = short_hash(part._identities)
        return part

    @property
    def paths(self):
        return [os.path.join(self._folders[name], file) for name, file, _ in self._identities]

    def told(self, indices=slice(None)):
        """What a conditional model is told of the slices at `indices`: as `modules.LabelEmbedding` takes it, in NumPy."""
        if self.values is None:
            return self.labels[indices]
        return np.concatenate([self.labels[indices, None], self.values[indices]], 1, dtype=np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        """The slices at `indices`, int [n], as a new uint8 array [n, R, R]."""
        labels, rows = self.labels[indices], self._rows[indices]
        pixels = np.empty((len(rows), self.resolution, self.resolution), np.uint8)
        for label, stored in self._pixels.items():
            pixels[labels == label] = stored[rows[labels == label]]
        return pixels


def spread(slices, count):
    """`count` of N slices (or of their names) spread evenly over the set, and so over both classes: uint8 [count, R, R]."""
    return slices[np.linspace(0, len(slices) - 1, count).round().astype(int)]


def to_float(batch):
    """uint8 [N, R, R] -> float32 [N, 1, R, R] in [-1, 1]."""
    return batch.unsqueeze(1).to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images):
    """Float [N, 1, R, R] in [-1, 1] -> uint8 [N, R, R], rounded and clipped; the exact inverse of `to_float`."""
    return images.squeeze(1).float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def resize(pixels, resolution):
    """Slices uint8 [N, R, R], NumPy, at another power of two, as `ops.resample` gives them, rounded."""
    if resolution == pixels.shape[-1]:
        return pixels
    return to_uint8(resample(to_float(torch.from_numpy(pixels)), resolution)).numpy()


def steps_per_epoch(num_slices, batch_size):
    """Number of full batches in one pass over the data, at least 1; each pass leaves out a different remainder."""
    return max(1, num_slices // batch_size)


def schedule(num_slices, batch_size, seed, start_step=0):
    """Yield (indices int64 [batch_size], mirrored bool [batch_size]) without end; the k-th pair depends on seed and k alone.

    Order and mirroring have streams of their own: NumPy takes (seed, epoch) and (seed, epoch, 0) for one seed.
    """
    steps = steps_per_epoch(num_slices, batch_size)
    while True:
        epoch, first = divmod(start_step, steps)
        rng = np.random.default_rng((seed, epoch))
        repeats = -(-batch_size // num_slices)  # above 1 only if a batch is larger than the data set
        order = np.concatenate([rng.permutation(num_slices) for _ in range(repeats)])
        for step in range(first, steps):
            mirrored = np.random.default_rng((seed, epoch, step + 1)).random(batch_size) < 0.5
            yield order[step * batch_size : (step + 1) * batch_size], mirrored
        start_step = (epoch + 1) * steps


def shard(x, shards, index):
    """The part of a batch [N, ...] that process `index` of `shards` works on: [N / shards, ...].

    Strided, since image i is in group i mod N/4 of modules.minibatch_std: if N is a multiple of 4 * shards, groups stay whole.
    """
    return x[index::shards]


def batches(slices, batch_size, device, seed, start_step=0, mirror=False, resident=None, shards=1, shard_index=0):
    """Yield (images float32 [N, 1, R, R] in [-1, 1], labels, of `Slices.told`) on `device` without end.

    Each pass is in a new random order; `mirror`: each slice is mirrored left-right with probability 0.5. Batch k is the same
    whether the iterator starts at step 0 or at `start_step=k`. Of each batch of `batch_size` only its `shard` is read and given.
    resident: keep all pixels on the device; None: if it is CUDA and has room for them.
    A background thread prepares the next batch, in pinned memory for CUDA; closing the iterator ends the thread.
    """
    device = torch.device(device)
    pixel_bytes = len(slices) * slices.resolution**2
    if resident is None:
        resident = has_room(device, pixel_bytes)
    if resident:
        all_labels = torch.from_numpy(slices.told()).to(device)
        all_pixels = torch.empty(len(slices), slices.resolution, slices.resolution, dtype=torch.uint8, device=device)
        for part in np.array_split(np.arange(len(slices)), -(-pixel_bytes // 2**28)):  # not all at once in host memory
            all_pixels[part[0] : part[-1] + 1] = torch.from_numpy(slices[part])
    plan = schedule(len(slices), batch_size, seed, start_step)

    def prepare():
        indices, mirrored = (np.ascontiguousarray(shard(x, shards, shard_index)) for x in next(plan))
        arrays = (indices, mirrored) if resident else (slices[indices], slices.told(indices), mirrored)
        tensors = [torch.from_numpy(array) for array in arrays]
        return [tensor.pin_memory() for tensor in tensors] if device.type == "cuda" else tensors

    with ThreadPoolExecutor(1) as background:
        prepared = background.submit(prepare)
        while True:
            *data, mirrored = (tensor.to(device, non_blocking=True) for tensor in prepared.result())
            prepared = background.submit(prepare)
            pixels, labels = (all_pixels[data[0]], all_labels[data[0]]) if resident else data
            if mirror:
                pixels = torch.where(mirrored[:, None, None], pixels.flip(-1), pixels)
            yield to_float(pixels), labels
