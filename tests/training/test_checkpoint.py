"""Checkpoints: what is written is read back, damage is noticed, and the checkpoint before it takes over."""

import os

import pytest
import torch
from conftest import checkpoint, same_checkpoints, start
from damage import cut, flip_bit, replace_by_pipe

from training.checkpoint import FORMAT, has_checkpoint, read_checkpoint, restore, write_checkpoint
from utils import UserError, save_tensors


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints at 1000 and 2000 images."""
    assert not has_checkpoint(str(tmp_path))
    for images in (1000, 2000):
        write_checkpoint(str(tmp_path), {"images": images, "weights": torch.full([1000], float(images))})
    return tmp_path


def save_list(path):
    torch.save([1, 2], path)


def save_other_images(path):
    save_tensors({"images": None, "format": FORMAT}, path)  # with a checksum that fits


DAMAGE = [cut, flip_bit, os.unlink, save_list, save_other_images] + [replace_by_pipe] * hasattr(os, "mkfifo")


def test_the_newest_checkpoint_is_read_and_the_one_before_it_kept(folder, capsys):
    state = read_checkpoint(str(folder))
    assert state["images"] == 2000 and state["format"] == FORMAT and (state["weights"] == 2000).all()
    assert sorted(os.listdir(folder)) == ["checkpoint.pt", "previous.pt"]
    assert torch.load(folder / "previous.pt", weights_only=True)["images"] == 1000
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_previous_one_with_a_warning(folder, capsys, damage):
    damage(folder / "checkpoint.pt")
    assert has_checkpoint(str(folder)) and read_checkpoint(str(folder))["images"] == 1000
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"warning: {folder}: checkpoint.pt is damaged or missing (")
    assert err.endswith("resuming from the checkpoint before it, at 1.0 kimg\n")
    assert read_checkpoint(str(folder), warn=False)["images"] == 1000 and capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", DAMAGE)
def test_two_damaged_checkpoints_are_refused_in_one_line(folder, damage):
    for name in ("checkpoint.pt", "previous.pt"):
        damage(folder / name)
    with pytest.raises(UserError, match="checkpoint.pt is damaged .* and previous.pt is damaged .*--resume False") as refused:
        read_checkpoint(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("number", [1, FORMAT + 1, None, "2"])
def test_a_checkpoint_of_another_format_is_refused_in_one_line(folder, number):
    save_tensors({"images": 3000, "format": number}, folder / "checkpoint.pt")
    expected = rf"checkpoint.pt .*another version .*format {number}, here {FORMAT}.*--resume False"
    with pytest.raises(UserError, match=expected) as refused:
        read_checkpoint(str(folder))
    assert "\n" not in str(refused.value)
    flip_bit(folder / "previous.pt")  # which is not looked at: a run never falls back to it unnoticed
    with pytest.raises(UserError, match=rf"format {number}, here {FORMAT}"):
        read_checkpoint(str(folder))


def test_a_crash_while_writing_leaves_a_whole_checkpoint(folder, monkeypatch):
    """Whichever renaming fails, one of the two files is whole."""
    replace = os.replace
    for failing in (1, 2):
        calls = iter(range(1, 9))

        def crash(source, target, failing=failing, calls=calls):
            if next(calls) == failing:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", crash)
            write_checkpoint(str(folder), {"images": 3000})
        assert read_checkpoint(str(folder), warn=False)["images"] == 2000
        assert not [name for name in os.listdir(folder) if name.startswith(".tmp-")]


def test_restore_raises_if_a_part_is_missing_or_does_not_fit():
    layer, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    restore({"layer": torch.nn.Linear(2, 3)}, {"layer": layer.state_dict()})
    with pytest.raises(RuntimeError, match="size mismatch"):
        restore({"layer": layer}, {"layer": other.state_dict()})
    with pytest.raises(KeyError):
        restore({"layer": layer}, {})


def test_loaded_moments_take_the_memory_format_of_their_weights():
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam([weight], fused=True)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    moments = optimizer.state[weight]
    before = {name: moments[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    moments.update({name: value.contiguous() for name, value in before.items()})
    state = optimizer.state_dict()
    restore({"optimizer": optimizer}, {"optimizer": state})
    moments = optimizer.state[weight]
    for name, value in before.items():
        assert torch.equal(moments[name], value) and moments[name].stride() == weight.stride()
    assert moments["step"] == 1


@pytest.mark.slow
def test_a_run_resumes_alike_from_moments_saved_in_another_memory_format(tmp_path, slices_dir, unplotted):
    for name in ("one", "two"):
        start(slices_dir, tmp_path / name, "--epochs", 2)
    state = checkpoint(tmp_path / "two/AD")
    moments = [values for part in ("model", "critic") for values in state[f"{part}_optimizer"]["state"].values()]
    kernels = [values for values in moments if values["exp_avg"].is_contiguous(memory_format=torch.channels_last)]
    assert 0 < len(kernels) < len(moments)
    for values in kernels:
        values.update({name: values[name].contiguous() for name in ("exp_avg", "exp_avg_sq")})
    del state["checksum"]
    save_tensors(state, tmp_path / "two/AD/checkpoint.pt")
    for name in ("one", "two"):
        start(slices_dir, tmp_path / name, "--epochs", 4)
    assert same_checkpoints(*(checkpoint(tmp_path / name / "AD") for name in ("one", "two")))
