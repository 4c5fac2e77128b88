"""What every command shares: errors and signals, files and checksums, devices, and flags."""

import argparse
import io
import json
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT

import utils
from predict import parse_args as parse_predict
from train import parse_args as parse_train
from training import progress
from training.progress import StopSignals
from utils import (
    ArgumentParser,
    Group,
    Interrupted,
    UserError,
    atomic_path,
    boolean,
    checksum,
    load_tensors,
    make_folder,
    number,
    pick_device,
    pick_dtype,
    random_stream,
    read_config,
    read_network,
    save_tensors,
)

# ---------------------------------------------------------------------------------------------------------------------
# Errors and signals


@pytest.mark.parametrize(
    "body, status, line",
    [
        ("return 0", 0, ""),
        ("raise utils.UserError('--flag x: wrong')", 2, "error: --flag x: wrong"),
        ("open('/no/such/file')", 2, "error: /no/such/file: No such file or directory"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 143, "stopped by SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130, "stopped by SIGINT"),
    ],
)
def test_run_cli_exit_status_and_line(body, status, line):
    code = f"import os, signal, time, utils\ndef main():\n    {body}\nutils.run_cli(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (status, line)


def test_run_cli_shows_the_traceback_of_our_own_faults():
    code = "import utils\nutils.run_cli(lambda: 1 / 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ZeroDivisionError" in done.stderr and done.returncode == 1


@pytest.fixture
def clock(monkeypatch):
    """The clock of training/progress.py; `clock.now` are the seconds that it shows."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_a_second_stop_signal_acts_at_once_only_after_two_seconds(clock):
    before = {signum: signal.getsignal(signum) for signum in utils.STOPPING}
    with StopSignals() as signals:
        assert signals.signum is None
        signal.raise_signal(signal.SIGTERM)
        clock.now += 1.9
        signal.raise_signal(signal.SIGINT)  # taken for the same
        assert signals.signum == signal.SIGTERM
        clock.now += 0.2  # 2.1 seconds after the first
        with pytest.raises(Interrupted, match="SIGUSR1") as stopped:
            signal.raise_signal(signal.SIGUSR1)
        assert stopped.value.signum == signal.SIGUSR1
    assert {signum: signal.getsignal(signum) for signum in utils.STOPPING} == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_a_second_stop_signal_ends_the_process_while_the_first_is_saving(tmp_path):
    """The first lets the save begin, the second leaves the old file and no half of the new one."""
    code = """
import os, signal, sys, types, utils
from training import progress

now = 100.0
progress.time = types.SimpleNamespace(monotonic=lambda: now)

def main():
    global now
    with progress.StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.signum == signal.SIGTERM
        with utils.atomic_path(sys.argv[1], sync=True) as path, open(path, "w") as file:
            file.write("half")
            file.flush()
            now += 3
            print("saving", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("saved")

utils.run_cli(main)
"""
    path = tmp_path / "checkpoint.pt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "saving\n", "stopped by SIGINT\n")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["checkpoint.pt"]


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.fixture
def disk_calls(monkeypatch):
    """What is asked of the disk from now on, in order: ("fsync" or "replace", inode of the file or folder meant)."""
    calls, fsync, replace = [], os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(("replace", os.stat(source).st_ino, os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return calls


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")
def test_atomic_path_flushes_the_whole_file_before_renaming_it_and_the_folder_after(tmp_path, disk_calls):
    with atomic_path(tmp_path / "a.bin", sync=True) as path, open(path, "wb") as file:
        file.write(bytes(100_000))
    file, folder = (tmp_path / "a.bin").stat(), tmp_path.stat()
    assert [call[:2] for call in disk_calls] == [("fsync", file.st_ino), ("replace", file.st_ino), ("fsync", folder.st_ino)]
    assert disk_calls[0][2] == 100_000  # nothing was still in Python's buffer
    disk_calls.clear()
    with atomic_path(tmp_path / "b.bin") as path, open(path, "wb") as file:
        file.write(b"not worth the wait")
    assert [call[0] for call in disk_calls] == ["replace"]


def test_atomic_path_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["kept.txt"]
    with atomic_path(path) as temporary:
        assert path.read_text() == "old"
        with open(temporary, "w") as file:
            file.write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["kept.txt"]
    if os.name != "nt":
        (tmp_path / "plain").touch()
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_make_folder_names_the_flag(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out .*file"):
        make_folder(tmp_path / "file" / "below", "--out")


@pytest.mark.parametrize("content", ["", "[1, 2]", "3", "{", "[" * 100_000, "\xff\xfe"])
def test_read_config_of_an_unreadable_file_is_empty(tmp_path, content):
    assert read_config(str(tmp_path)) == read_network(str(tmp_path)) == {}  # there is no file yet
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    assert read_config(str(tmp_path)) == read_network(str(tmp_path)) == {}


def test_read_network_gives_possible_settings_only(tmp_path):
    network = {"resolution": 64, "channel_base": 4096, "channel_max": 128, "mapping_layers": 2, "z_dim": 64, "w_dim": 64}
    network["num_classes"] = 2
    config = {"flags": {"seed": 3}, "network": network, "torch": "2.14"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(str(tmp_path)) == {"flags": {"seed": 3}, "network": network}
    assert read_network(str(tmp_path)) == network | {"values": []}
    for wrong in (
        *({"channel_max": 2**30}, {"channel_max": 1.5}, {"channel_base": 0}),
        *({"resolution": 65}, {"num_classes": 3}, {"mapping_layers": 65}, {"mapping_layers": 0}),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"network": network | wrong}))
        assert read_network(str(tmp_path)) == {}, wrong


STATE = {"a": torch.arange(6.0), "b": {"lr": 0.1, "betas": (0.0, 0.99)}, "n": 3}


def test_checksum_is_that_of_the_content():
    copy = STATE | {"a": torch.arange(6.0).repeat_interleave(2)[::2]}  # another layout in memory
    assert not copy["a"].is_contiguous() and checksum(copy) == checksum(STATE)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0).bfloat16()},
        {"a": torch.arange(6)},
        {"a": torch.tensor([0.0, 1, 2, 3, 4, 5.0000005])},
        {"a": torch.tensor([-0.0, 1, 2, 3, 4, 5])},
        {"a": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]},
        {"n": 4},
        {"n": "3"},
        {"b": {"lr": 0.1, "betas": (0.0, 0.9)}},
        {"b": {"lr": 0.1, "betas": [0.0, 0.99]}},
        {"b": {"betas": (0.0, 0.99), "l": 0.1}},
        {"c": None},
    ],
)
def test_checksum_changes_with_every_dtype_shape_value_and_key(change):
    assert checksum(STATE | change) != checksum(STATE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.uint8])
def test_checksum_sees_one_bit_of_a_tensor_of_any_dtype(dtype):
    tensor = torch.arange(1, 6).to(dtype)
    changed = tensor.clone()
    changed.view(torch.uint8)[-1] ^= 1
    assert checksum({"x": tensor}) == checksum({"x": tensor.clone()}) != checksum({"x": changed})


def test_load_tensors_returns_what_was_saved(tmp_path):
    state = STATE | {"x": torch.randn(3).bfloat16(), "empty": torch.zeros(0)}
    save_tensors(state, tmp_path / "state.pt")
    loaded = load_tensors(tmp_path / "state.pt")
    assert loaded.keys() == state.keys() and checksum(loaded) == checksum(state)
    assert torch.equal(loaded["x"], state["x"]) and loaded["b"] == state["b"]


def test_load_tensors_refuses_a_flipped_bit_in_the_weights(tmp_path):
    path = tmp_path / "state.pt"
    save_tensors({"weights": torch.full([1000], 7.0)}, path)
    content, weights = bytearray(path.read_bytes()), torch.full([1000], 7.0).numpy().tobytes()
    content[content.index(weights) + 2001] ^= 4
    path.write_bytes(content)
    assert not torch.load(path, weights_only=True)["weights"].eq(7).all()  # PyTorch does not notice
    with pytest.raises(ValueError, match="checksum"):
        load_tensors(path)


def test_load_tensors_accepts_a_file_without_a_checksum(tmp_path):
    torch.save(STATE, tmp_path / "state.pt")
    assert checksum(load_tensors(tmp_path / "state.pt")) == checksum(STATE)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_load_tensors_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "state.pt")


def test_a_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    """torch.save writes into memory, so that a full disk raises OSError and not an error of PyTorch's own."""
    save_tensors(STATE, tmp_path / "state.pt")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils, "open", full, raising=False)
    with pytest.raises(OSError, match="No space") as error, atomic_path(str(tmp_path / "state.pt")) as path:
        save_tensors({"a": torch.ones(9)}, path)
    assert error.value.filename == str(tmp_path / "state.pt") and os.listdir(tmp_path) == ["state.pt"]
    monkeypatch.undo()
    assert checksum(load_tensors(tmp_path / "state.pt")) == checksum(STATE)


# ---------------------------------------------------------------------------------------------------------------------
# Devices and random numbers


@pytest.mark.parametrize("hidden, cuda, expected", [(None, "13.0", "CUDA 13.0"), (None, None, "without CUDA"), ("", "13.0", None)])
def test_a_gpu_that_pytorch_cannot_use_is_not_passed_over_in_silence(monkeypatch, capsys, hidden, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert pick_device("auto").type == "cpu"
    warning = capsys.readouterr().err
    assert warning.count("\n") == (expected is not None) and (expected or "") in warning


def test_pick_device_knows_the_cpu_and_refuses_nonsense():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="--device meat: .*--device cpu"):
        pick_device("meat")


@pytest.mark.parametrize("cuda, mps, expected", [(True, True, "cuda:0"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_apples_gpu_only_where_there_is_no_cuda(monkeypatch, pretended_gpus, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(utils, "has_nvidia_driver", lambda: False)
    assert str(pick_device("auto")) == expected


def test_apples_gpu_computes_in_float32():
    assert pick_dtype(None, torch.device("mps")) == pick_dtype(False, torch.device("mps")) == torch.float32
    with pytest.raises(UserError, match="^--amp True: Apple"):
        pick_dtype(True, torch.device("mps"))


def test_a_card_that_this_pytorch_has_no_code_for_is_told(monkeypatch):
    def fail(*_, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "zeros", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    with pytest.raises(UserError, match="no code for compute capability 6.1; .*--device cpu"):
        pick_device("cuda")


@pytest.fixture
def pretended_gpus(monkeypatch, settings_of_torch):
    """pick_device finds any GPU that it asks for."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))


def test_float32_is_never_tf32_on_cuda(monkeypatch, pretended_gpus):
    monkeypatch.setenv("LOCAL_RANK", "3")
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default for convolutions
    torch.set_float32_matmul_precision("high")
    assert torch.backends.cuda.matmul.allow_tf32
    assert pick_device("cuda") == torch.device("cuda:3")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("seen, expected", [(1, "cuda:0"), (4, "cuda:3")])
def test_srun_may_show_each_process_its_own_gpu_alone(monkeypatch, pretended_gpus, seen, expected):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("SLURM_PROCID", "7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert str(pick_device("cuda")) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_amp_decides_the_dtype_on_any_device(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert pick_dtype(True, torch.device(device)) == torch.bfloat16
    assert pick_dtype(False, torch.device(device)) == torch.float32


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_default_dtype_of_a_gpu_is_bfloat16_from_ampere_on(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_dtype(None, torch.device("cuda")) == dtype


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_amp_is_float16_on_a_gpu_before_ampere(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = [pick_dtype(amp, torch.device("cuda")) for amp in (True, None, False)]
    assert found == [torch.float16, torch.float32, torch.float32]


@pytest.mark.parametrize(
    "flags, dtype",
    [
        ("avx512f amx_tile amx_bf16 amx_int8", torch.bfloat16),
        ("avx512f avx512_bf16", torch.bfloat16),
        ("avx2 avx512f avx512_vnni", torch.float32),
        ("avx2 not_amx_bf16", torch.float32),
        ("", torch.float32),
    ],
)
def test_default_dtype_of_a_cpu_is_bfloat16_with_instructions_for_it(monkeypatch, flags, dtype):
    opened = []

    def cpuinfo(path):
        opened.append(path)
        return io.StringIO(f"processor\t: 0\nflags\t\t: fpu sse {flags}\nbugs\t\t: none\n")

    monkeypatch.setattr(utils, "open", cpuinfo, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert pick_dtype(None, torch.device("cpu")) == dtype and opened == ["/proc/cpuinfo"]


def test_default_dtype_of_a_cpu_is_float32_where_pytorch_or_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(utils, "open", lambda _: io.StringIO("flags : amx_bf16"), raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert pick_dtype(None, torch.device("cpu")) == torch.float32

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(utils, "open", missing)
    assert pick_dtype(None, torch.device("cpu")) == torch.float32


def test_random_streams_repeat_by_purpose_and_seed_alone():
    def draw(*key):
        return torch.randn(1000, generator=random_stream(*key))

    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw("latents", 0), draw("latents", 0))
    streams = torch.stack([weights, draw("latents", 0), draw("latents", 1), draw("noise", 0)])
    assert (torch.corrcoef(streams) - torch.eye(4)).abs().max() < 0.15


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_tensor():
    code = (
        "import resource, torch, utils\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def allocate():\n"
        "    before = faults()\n"
        "    for _ in range(2): torch.ones(2 ** 24)\n"  # 64 MiB: 16384 pages each time
        "    return faults() - before\n"
        "before = allocate(); utils.pick_device('cpu'); after = [allocate() for _ in range(6)][-1]; print(before, after)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    if before < 500:
        pytest.skip("huge pages leave nothing to save")
    assert after < before / 20


# ---------------------------------------------------------------------------------------------------------------------
# Command lines


def test_boolean_flags_take_true_and_false_in_any_case():
    parser = ArgumentParser("")
    Group(parser, "").add_bool("--flag", False, "")
    assert [parser.parse_args(text.split()).flag for text in ("", "--flag", "--flag True", "--flag fAlSe", "--flag TRUE")] == [
        False,
        True,
        True,
        False,
        True,
    ]
    with pytest.raises(UserError, match="--flag.*'yes'"):
        parser.parse_args(["--flag", "yes"])
    with pytest.raises(argparse.ArgumentTypeError):
        boolean("1")


@pytest.mark.parametrize(
    "kind, low, high, open_low, good, bad",
    [(int, 1, 8, False, ["1", "8"], ["0", "9", "1.5", "x"]), (float, 0, 1, True, ["1e-9", "1"], ["0", "-1", "1.1", "nan", "inf"])],
)
def test_number_refuses_what_is_out_of_bounds(kind, low, high, open_low, good, bad):
    parse = number(kind, low, high, open_low)
    assert [parse(text) for text in good] == [kind(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


@pytest.mark.parametrize(
    "given, meant",
    [
        ("--epoch", "--epochs"),
        ("--dataset-dir=x", "--dataset_dir"),
        ("--classe", "--classes"),
        ("--lambda", "--lambda_gp"),
        ("--xyzzy", None),
    ],
)
def test_unknown_flags_suggest_the_near_one(given, meant):
    with pytest.raises(UserError, match=f"unknown: {given}") as refused:
        parse_train(["--dataset_dir", "x", given])
    assert (f"did you mean {meant}?" in str(refused.value)) == (meant is not None)


@pytest.mark.parametrize(
    "given, meant",
    [
        ("--ad_dir AD", "--AD_dir"),  # among --AD_dir and --NC_dir, the one that differs in its letter case alone
        ("--nc_dir=NC", "--NC_dir"),
        ("--ad_dir AD --Nc_Dir NC", "--AD_dir --NC_dir"),
        ("-AD-dir AD", "--AD_dir"),
        ("\N{EN DASH}plot_umap True", "--plot_umap"),
        ("--CN_dir NC", "--NC_dir"),
        ("--modl_dir model", "--model_dir"),
        ("plot_umap True", "--plot_umap"),
        ("--n 3", None),
    ],
)
def test_flags_in_another_letter_case_or_with_other_dashes_are_recognised(given, meant):
    with pytest.raises(UserError, match=f"unknown: {given}") as refused:
        parse_predict(given.split())
    assert (f" did you mean {meant}?" in str(refused.value)) if meant else ("did you mean" not in str(refused.value))


@pytest.mark.parametrize("given", ["--data_dir", "--datset_dir=x", "--Dataset-Dir"])
def test_a_required_flag_that_is_misspelt_is_recognised(given):
    with pytest.raises(UserError, match=f"unknown: {given}, did you mean --dataset_dir"):
        parse_train([given, "--lr", "0.1"])
    for others in ([], ["--lr", "0.1"]):
        with pytest.raises(UserError, match="are required: --dataset_dir"):
            parse_train(others)
    with pytest.raises(UserError, match="--lr: -1 is out of range"):  # a number is no flag
        parse_train(["--lr", "-1"])


@pytest.mark.parametrize("parse", [parse_train, parse_predict])
def test_help_lists_every_flag_once_and_its_examples_work(parse, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    out = capsys.readouterr().out
    usage, flags = out.split("examples:")[0].split("options:")
    for flag in set(re.findall(r"--\w+", usage)) - {"--help"}:
        assert len(re.findall(rf"^  {flag} ", flags, re.MULTILINE)) == 1, flag
    assert "(default: None)" not in out and flags.count("(default: ") >= 7
    for line in re.findall(r"^  python \w+\.py (.*)", out, re.MULTILINE):
        parse(line.split())


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "predict.py"])
@pytest.mark.parametrize("flag, status", [("--help", 0), ("--nonsense", 2)])
def test_flags_are_answered_without_pytorch(script, flag, status):
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('modules:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, os.path.join(ROOT, script), flag], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status and "modules: sys" in done.stdout
    assert not {"torch", "numpy", "matplotlib", "umap", "PIL"} & set(done.stdout.split("modules:")[1].split())


def test_has_room_for_a_third_of_a_gpus_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300, 1000))
    gpu = torch.device("cuda:1")
    assert utils.has_room(gpu, 100) and not utils.has_room(gpu, 101) and not utils.has_room(torch.device("cpu"), 1)


def test_classes_are_named_in_any_letter_case_and_cn_means_nc(capsys):
    utils.class_name.cache_clear()
    assert [utils.class_name(name) for name in ("AD", "nc", "All", "MCI")] == ["AD", "NC", "all", "MCI"]
    assert capsys.readouterr().err == ""
    assert utils.class_name("CN") == utils.class_name("CN") == "NC"
    assert capsys.readouterr().err == "note: CN is ADNI's word for the class NC\n"
