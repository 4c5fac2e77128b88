"""The pixels against a second computation, damaged folders and caches, and the batches of a shard."""

import errno
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import noise, save

import dataset
from data import cache as cache_file
from data.checks import warn_once
from data.folders import find_slices, find_splits, holds_classes
from dataset import Slices, batches, schedule, shard, steps_per_epoch, to_float, to_uint8
from modules import minibatch_std
from utils import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stylegan2-brain"


@pytest.fixture
def data(tmp_path):
    """Five AD and seven NC slices, 32 x 32 lossless noise, seeds 0-4 and 10-16."""
    for i in range(5):
        save(tmp_path / f"AD_NC/train/AD/{100 + i}_7.png", noise(32, 32, i))
    for i in range(7):
        save(tmp_path / f"AD_NC/train/NC/{200 + i}_7.png", noise(32, 32, 10 + i))
    return tmp_path / "AD_NC/train"


def load(data, **options):
    return Slices(str(data), resolution=options.pop("resolution", 32), progress=False, **options)


def forbid_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_file, "read_files", refuse)


# Files ----------------------------------------------------------------------------------------------------------------


def test_slices_have_labels_counts_and_a_fixed_order(data):
    slices = load(data)
    assert len(slices) == 12 and slices.counts == {"AD": 5, "NC": 7}
    assert slices.labels.dtype == np.int64 and slices.labels.tolist() == [0] * 5 + [1] * 7
    picked = slices[np.array([11, 0, 5, 0])]
    assert picked.dtype == np.uint8
    for got, seed in zip(picked, (16, 0, 10, 0)):
        assert (got == noise(32, 32, seed)).all()


def test_find_slices_at_any_depth_in_any_letter_case_without_hidden_files(tmp_path):
    names = ["a.JPEG", "b.jpg", "c.PnG", "d.bmp", "deep/er/e.TIF", "deep/f.tiff"]
    for name in names + [".hidden.png", "._a.JPEG", ".folder/g.png"]:
        save(tmp_path / "AD" / name, noise(32, 32))
    (tmp_path / "AD/notes.txt").write_text("not a slice")
    os.symlink(tmp_path / "AD", tmp_path / "AD/deep/loop")
    assert [name for name, *_ in find_slices(str(tmp_path / "AD"))] == names
    assert load(tmp_path, classes="AD").counts == {"AD": 6}


def test_slices_warn_of_unreadable_files_in_one_line_in_every_run(data, capsys):
    image = noise(200, 200)
    save(data / "AD/truncated.jpeg", image)
    whole = (data / "AD/truncated.jpeg").read_bytes()
    (data / "AD/truncated.jpeg").write_bytes(whole[: len(whole) // 2])
    (data / "NC/empty.png").write_bytes(b"")
    (data / "NC/text.jpg").write_text("an error page")
    os.symlink(data / "nowhere", data / "NC/dangling.bmp")
    for _ in range(2):
        slices = load(data)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "4 unreadable" in error
        for name in ("AD/truncated.jpeg", "NC/empty.png", "NC/text.jpg", "NC/dangling.bmp"):
            assert name in error
        assert slices.counts == {"AD": 5, "NC": 7}
        assert (slices[np.arange(12)][[0, 4, 5, 11]] == [noise(32, 32, seed) for seed in (0, 4, 10, 16)]).all()


def test_slices_include_a_file_that_became_readable_again(data, capsys):
    path = data / "AD/100_7.png"
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(b"\0" * len(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(load(data)) == 11
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a chmod or a network disk would leave it
    assert len(load(data)) == 12


# Class folders and other files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ad, nc", [("AD", "CN"), ("ad", "cn"), ("Ad", "nc"), ("AD", "Cn")])
def test_class_folders_in_any_letter_case_and_by_the_name_of_adni(data, capsys, ad, nc):
    expected = load(data)
    (data / "AD").rename(data / ad)
    (data / "NC").rename(data / nc)
    slices = load(data)
    assert slices.names == expected.names and slices.fingerprint == expected.fingerprint
    assert (slices[np.arange(12)] == expected[np.arange(12)]).all()
    notes = [f"note: {data / folder} is read as class {name}" for folder, name in ((ad, "AD"), (nc, "NC")) if folder != name]
    assert capsys.readouterr().err.splitlines() == notes
    assert load(data, classes="NC").counts == {"NC": 7} and holds_classes(str(data), "all")


def test_two_folders_of_a_class_are_refused(data):
    shutil.copytree(data / "NC", data / "CN")
    assert "NC and CN both stand for class NC; keep one" in refusal(data) and "NC and CN" in refusal(data, classes="NC")
    assert load(data, classes="AD").counts == {"AD": 5}
    shutil.rmtree(data / "CN")
    os.symlink(data / "NC", data / "CN")  # the same one
    assert load(data).counts == {"AD": 5, "NC": 7}


@pytest.mark.parametrize("given", ["train", "."])
def test_a_split_without_a_class_is_named(data, capsys, given):
    parent = data.parent
    for folder in ("test/AD", "test/Controls"):
        shutil.copytree(data / "AD", parent / folder)
    assert find_splits(str(parent / given)) == {"train": str(parent / given / "train" if given == "." else data)}
    assert capsys.readouterr().err.endswith("test is left out: no folder NC in it, but AD, Controls\n")
    assert set(find_splits(str(parent / given), "AD")) == {"train", "test"}
    (parent / "test/Controls").rename(parent / "test/CN")
    (parent / "test").rename(parent / "Test")
    assert find_splits(str(parent / given))["test"].endswith("Test")
    assert capsys.readouterr().err == ""


def test_files_that_are_not_read_are_counted_and_named(data, capsys):
    for name in ("a.dcm", "b.nii.gz", "c.npy", "d.gif", "e.webp", "f.jp2", "IM0001"):
        (data / "AD" / name).write_bytes(b"x")
    for name in ("._100_7.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "table.csv"):
        (data / "NC" / name).write_bytes(b"x")
    load(data)
    names = "IM0001, a.dcm, b.nii.gz, c.npy, d.gif, e.webp, f.jp2"
    assert capsys.readouterr().err == f"warning: {data / 'AD'}: 7 files of kinds that are not read left out: {names}\n"
    load(data)
    assert capsys.readouterr().err == ""  # once in a command
    for path in (data / "AD").glob("*.png"):
        path.unlink()
    assert "no slices in" in refusal(data) and "there is IM0001, a.dcm" in refusal(data)


# Cache ----------------------------------------------------------------------------------------------------------------


def test_cache_saves_decoding(data, cache, monkeypatch):
    first = load(data)[np.arange(12)]
    forbid_decoding(monkeypatch)
    assert (load(data)[np.arange(12)] == first).all()
    assert len(list(cache.glob("[!.]*"))) == 2
    assert isinstance(load(data)._pixels[0], np.memmap)


def test_cache_is_rebuilt_after_a_change_and_the_old_one_removed(data, cache):
    load(data)
    load(data, resolution=64)
    save(data / "AD/100_7.png", noise(32, 32, 99))
    assert (load(data)[[0]][0] == noise(32, 32, 99)).all()
    save(data / "AD/000_1.png", noise(32, 32, 98))
    assert (load(data)[[0]][0] == noise(32, 32, 98)).all()
    (data / "AD/000_1.png").rename(data / "AD/999_1.png")
    assert (load(data)[[5]][0] == noise(32, 32, 98)).all()
    assert Counter(path.name[:2] for path in cache.glob("[!.]*")) == {"AD": 2, "NC": 2}  # one for each resolution


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_cache_is_rebuilt_after_a_change_that_keeps_size_and_time(data, how):
    """As cp -p, rsync -t or an unpacked archive do."""
    for folder, content in (("NC", noise(32, 32, 10)), ("", noise(32, 32, 99))):
        save(data / folder / "200_7.bmp", content)
    load(data)
    path, new = data / "NC/200_7.bmp", data / "200_7.bmp"
    before = path.stat()
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    if how == "replaced":
        new.replace(path)
    else:
        path.write_bytes(new.read_bytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert (load(data)[[5]][0] == noise(32, 32, 99)).all()


def test_cache_keeps_the_levels_of_deeper_files(data, monkeypatch, capsys):
    """NC of 12 bits beside AD of 8: as bright, and the same is said of it, with and without the cache."""
    expected = load(data)[np.arange(12)]
    for path in (data / "NC").iterdir():
        with Image.open(path) as image:
            deep = np.asarray(image).astype(np.uint16) * 16
        save(path, deep)
    said = []
    for _ in range(2):
        warn_once.cache_clear()
        slices = load(data)
        np.testing.assert_allclose(slices[np.arange(12)].astype(int), expected, atol=1)
        said.append(capsys.readouterr().err)
        forbid_decoding(monkeypatch)
    assert said[0] == said[1] and isinstance(slices._pixels[1], np.memmap)
    assert "NC 0 and 4095 (16-bit)\n" in said[0] and "AD 5 8-bit; NC 7 16-bit" in said[0]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "zeros", "other shape"])
def test_damaged_cache_is_rebuilt(data, cache, damage):
    expected = load(data)[np.arange(12)]
    for path in cache.glob("*.npy"):
        content = path.read_bytes()
        if damage == "other shape":
            np.save(path, np.ones((3, 32, 32), np.uint8))
        else:
            path.write_bytes(
                {
                    "truncated": content[:3000],
                    "garbage": os.urandom(3000),
                    "empty": b"",
                    "zeros": content[:128] + bytes(len(content) - 128),
                }[damage]
            )
    assert (load(data)[np.arange(12)] == expected).all()
    np.testing.assert_array_equal(np.load(next(cache.glob("AD*")))[:5], expected[:5])


def test_cache_whose_pixels_are_not_those_of_the_files_is_renewed(data, cache):
    expected = load(data)[np.arange(12)]
    for path in cache.glob("*.npy"):
        np.load(path, mmap_mode="r+")[: 5 if path.name.startswith("AD") else 7] = 99
    assert (load(data)[np.arange(12)] == expected).all() and (load(data)[np.arange(12)] == expected).all()


def test_cache_on_a_full_disk_falls_back_to_memory_and_leaves_no_file(data, cache, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    slices = load(data)
    error = capsys.readouterr().err
    assert error.startswith("note: no cache in") and error.count("\n") == 1
    assert (slices[[11]][0] == noise(32, 32, 16)).all() and not isinstance(slices._pixels[0], np.memmap)
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_fingerprint_depends_on_names_and_sizes_alone(data, tmp_path):
    first = load(data).fingerprint
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copy)  # new place, new times
    assert load(tmp_path / "copy").fingerprint == first == load(data, resolution=64).fingerprint
    assert len({first, load(data, classes="AD").fingerprint, load(data, classes="NC").fingerprint}) == 3
    (tmp_path / "copy/AD/100_7.png").rename(tmp_path / "copy/AD/100_8.png")
    assert load(tmp_path / "copy").fingerprint != first
    with open(data / "AD/100_7.png", "ab") as file:
        file.write(b"more")
    assert load(data).fingerprint != first


# Batches --------------------------------------------------------------------------------------------------------------


def take(count, slices, **options):
    stream = batches(slices, **{"batch_size": 4, "device": "cpu", "seed": 1, **options})
    taken = [next(stream) for _ in range(count)]
    stream.close()
    return taken


def same_batches(one, two):
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True))


def test_to_uint8_is_the_inverse_of_to_float():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    images = to_float(values)
    assert images.shape == (1, 1, 16, 16) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images), values) and to_uint8(images).dtype == torch.uint8
    np.testing.assert_allclose(images.flatten().numpy(), np.linspace(-1, 1, 256), atol=1e-6)
    assert to_uint8(torch.tensor([-3.0, 3.0, 0.001]).reshape(3, 1, 1, 1)).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize("resident", [False, True])
def test_batches_are_the_slices_with_their_labels(data, resident):
    slices = load(data)
    plan = schedule(len(slices), 4, seed=1)
    for (images, labels), (indices, mirrored) in zip(take(7, slices, resident=resident, mirror=True), plan):
        assert images.shape == (4, 1, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
        assert labels.tolist() == slices.labels[indices].tolist()
        expected = [pixels[:, ::-1] if mirror else pixels for pixels, mirror in zip(slices[indices], mirrored)]
        np.testing.assert_allclose(images[:, 0].numpy(), np.stack(expected) / 127.5 - 1, atol=1e-6)


def test_batches_stay_on_a_device_that_has_room_for_all_pixels(data, monkeypatch):
    slices, asked = load(data), []
    monkeypatch.setattr(dataset, "has_room", lambda device, size: asked.append((str(device), size)) or True)
    placed = take(3, slices, resident=None)
    assert asked == [("cpu", slices[:].size)]
    assert same_batches(placed, take(3, slices, resident=True)) and len(asked) == 1  # not asked again


def test_batches_repeat_for_a_seed_and_can_start_at_any_step(data):
    slices = load(data)
    straight = take(10, slices)
    assert same_batches(straight, take(10, slices)) and same_batches(straight, take(10, slices, resident=True))
    assert not same_batches(straight, take(10, slices, seed=2))
    for k in (1, 3, 5, 9):
        assert same_batches(straight[k:], take(10 - k, slices, start_step=k))


def test_schedule_takes_every_slice_once_an_epoch_in_a_new_order():
    plan = schedule(12, 4, seed=0)
    epochs = [np.concatenate([next(plan)[0] for _ in range(3)]) for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_schedule_leaves_out_a_different_remainder_each_epoch():
    assert steps_per_epoch(7, 4) == 1 and steps_per_epoch(12, 4) == 3 and steps_per_epoch(3, 4) == 1
    plan = schedule(7, 4, seed=0)
    assert set(np.concatenate([next(plan)[0] for _ in range(20)])) == set(range(7))


@pytest.mark.parametrize("seed, epoch", [(0, 0), (0, 3), (7, 2)])
def test_no_batch_is_mirrored_by_the_numbers_that_order_its_epoch(seed, epoch):
    """NumPy takes (seed, epoch) and (seed, epoch, 0) for one seed: the first batch's flips would follow from the order."""
    of_order = np.random.default_rng((seed, epoch)).random(400) < 0.5
    order = np.random.default_rng((seed, epoch)).permutation(1200)
    for step in range(3):
        indices, mirrored = next(schedule(1200, 400, seed, 3 * epoch + step))
        assert (indices == order[400 * step : 400 * (step + 1)]).all()
        assert abs((mirrored == of_order).mean() - 0.5) < 5 * 0.5 / 20  # five standard errors


def test_schedule_of_fewer_slices_than_a_batch():
    for indices, mirrored in (next(schedule(3, 8, seed=0, start_step=k)) for k in range(5)):
        assert len(indices) == len(mirrored) == 8 and set(Counter(indices.tolist()).values()) <= {2, 3}


def test_batches_mirror_half_of_the_slices_if_asked_and_none_by_default(data):
    mirrored = np.concatenate([mirror for _, (_, mirror) in zip(range(250), schedule(16, 16, seed=0))])
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(mirrored.size)  # five standard errors
    assert len({mirror.tobytes() for _, (_, mirror) in zip(range(50), schedule(160, 16, seed=0))}) == 50
    slices = load(data)
    for (images, _), (indices, _) in zip(take(6, slices), schedule(12, 4, seed=1)):
        assert (to_uint8(images).numpy() == slices[indices]).all()


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_shard_keeps_the_groups_of_the_minibatch_standard_deviation(shards):
    """The critic sees the same groups whether it sees the whole batch or one shard at a time."""
    images = torch.randn(8 * shards, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = minibatch_std(images)  # 2 * shards groups of different standard deviations
    for index in range(shards):
        torch.testing.assert_close(minibatch_std(shard(images, shards, index)), shard(whole, shards, index))
    blocks = images.chunk(shards)  # consecutive images would be in other groups
    assert not torch.allclose(minibatch_std(blocks[0]), whole.chunk(shards)[0])


@pytest.mark.parametrize("resident", [False, True])
def test_batches_of_the_shards_are_the_shards_of_the_batches(data, resident):
    slices = load(data)
    whole = take(5, slices, batch_size=8, resident=resident)
    for index in range(2):
        part = take(5, slices, batch_size=8, resident=resident, shards=2, shard_index=index)
        assert same_batches(part, [(shard(images, 2, index), shard(labels, 2, index)) for images, labels in whole])
        assert len(part[0][0]) == 4


@pytest.mark.parametrize("resident", [False, True])
def test_closing_batches_ends_their_thread(data, resident):
    before = set(threading.enumerate())
    stream = batches(load(data), 4, "cpu", seed=0, resident=resident)
    next(stream)
    assert set(threading.enumerate()) - before
    stream.close()
    assert not set(threading.enumerate()) - before


# Errors ---------------------------------------------------------------------------------------------------------------


def refusal(data, **options):
    with pytest.raises(UserError) as caught:
        load(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_slices_refuse_missing_and_empty_folders_with_a_hint(data):
    assert str(data / "nowhere") in refusal(data / "nowhere") and "AD and NC" in refusal(data / "nowhere")
    assert f"did you mean --dataset_dir {data}?" in refusal(data.parent)
    assert f"did you mean --dataset_dir {data}?" in refusal(data / "AD")
    (data / "NC").rename(data / "Control")
    message = refusal(data)
    assert "no folder NC in it, but AD, Control" in message and "did you mean" not in message
    (data / "NC").mkdir()
    assert str(data / "NC") in refusal(data) and ".jpeg" in refusal(data)
    (data / "NC/1_1.png").write_bytes(b"")
    assert "no readable slice" in refusal(data) and "1_1.png" in refusal(data)
    assert load(data, classes="AD").counts == {"AD": 5}


@pytest.mark.slow
def test_two_processes_that_start_together_decode_once(data, tmp_path):
    for i in range(300):
        save(data / f"NC/9{i:03}_1.png", noise(64, 64, i))
    code = (
        "import sys, os, time, hashlib; import numpy as np; from dataset import Slices; from data import cache\n"
        "fill, filled = cache.fill, []\ncache.fill = lambda *args: (filled.append(1), fill(*args))\n"
        f"me, other = sys.argv[1:]; open(me, 'w').close()\nwhile not os.path.exists(other): time.sleep(0.001)\n"
        f"s = Slices({str(data)!r}, resolution=32)\n"
        "print(hashlib.sha256(s[np.arange(len(s))]).hexdigest(), s.counts, len(filled), sep='\\n')"
    )
    flags = [str(tmp_path / "one"), str(tmp_path / "two")]
    runs = [
        subprocess.Popen([sys.executable, "-c", code, *order], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for order in (flags, flags[::-1])
    ]
    outputs = [run.communicate(timeout=300) for run in runs]
    lines, others = (out.splitlines() for out, _ in outputs)
    assert lines[:2] == others[:2] and outputs[0][1] == outputs[1][1] == ""
    assert int(lines[2]) + int(others[2]) == 2  # once of each class
    slices = load(data)
    assert hashlib.sha256(slices[np.arange(len(slices))]).hexdigest() in outputs[0][0]
