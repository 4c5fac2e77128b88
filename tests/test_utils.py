"""Errors, devices and files that are never half written."""

import json
import os
import platform
import stat
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import utils
from utils import UserError, atomic_path, make_folder, pick_device, pick_dtype, random_stream, read_config, read_network


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
    network = {"resolution": 64, "channel_base": 4096, "channel_max": 128, "z_dim": 64, "w_dim": 64, "num_classes": 2}
    config = {"flags": {"seed": 3}, "network": network, "torch": "2.14"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(str(tmp_path)) == {"flags": {"seed": 3}, "network": network}
    assert read_network(str(tmp_path)) == network
    for wrong in ({"resolution": 65}, {"channel_max": 2**30}, {"channel_base": 0}, {"num_classes": 3}, {"channel_max": 1.5}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"network": network | wrong}))
        assert read_network(str(tmp_path)) == {}, wrong


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


def test_run_cli_lets_our_own_faults_show():
    done = subprocess.run(
        [sys.executable, "-c", "import utils\nutils.run_cli(lambda: 1 / 0)"], cwd=ROOT, capture_output=True, text=True
    )
    assert "ZeroDivisionError" in done.stderr and done.returncode == 1


def test_devices(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="--device meat: .*--device cpu"):
        pick_device("meat")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for device in (cpu, cuda):
        assert pick_dtype(True, device) == torch.bfloat16 and pick_dtype(False, device) == torch.float32
    for capability, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        assert pick_dtype(None, cuda) == expected
    for amx in (True, False):
        monkeypatch.setattr(utils, "_has_amx", lambda: amx)
        assert pick_dtype(None, cpu) == (torch.bfloat16 if amx else torch.float32)


def test_random_streams_repeat_by_purpose_and_seed_alone():
    def draw(*key):
        return torch.randn(1000, generator=random_stream(*key))

    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw("latents", 0), draw("latents", 0))
    streams = torch.stack([weights, draw("latents", 0), draw("latents", 1), draw("noise", 0)])
    assert (torch.corrcoef(streams) - torch.eye(4)).abs().max() < 0.15


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_tensor():
    code = (
        "import resource, torch, utils\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def allocate():\n"
        "    before = faults()\n"
        "    for _ in range(5): torch.ones(2 ** 24)\n"  # 64 MiB: 16384 pages each time
        "    return faults() - before\n"
        "before = allocate(); utils.pick_device('cpu'); settled = [allocate() for _ in range(6)][-1]; print(before, settled)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert int(out[1]) < int(out[0]) / 20 or int(out[0]) < 500  # huge pages may leave nothing to save
