"""Flags: what they take, what they refuse, and that they are read before PyTorch is."""

import argparse
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from predict import parse_args as parse_predict
from train import parse_args as parse_train
from utils import ArgumentParser, Group, UserError, boolean, number


def test_boolean_flags():
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
def test_number_bounds(kind, low, high, open_low, good, bad):
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
        ("--ema", "--ema_kimg"),
        ("--xyzzy", None),
    ],
)
def test_unknown_flags_suggest_the_near_one(given, meant):
    with pytest.raises(UserError, match=f"unknown: {given}") as refused:
        parse_train(["--dataset_dir", "x", given])
    assert (f"did you mean {meant}?" in str(refused.value)) == (meant is not None)


@pytest.mark.parametrize("parse", [parse_train, parse_predict])
def test_help_is_whole(parse, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    out = capsys.readouterr().out
    usage, flags = out.split("examples:")[0].split("options:")
    for flag in set(re.findall(r"--\w+", usage)) - {"--help"}:
        assert len(re.findall(rf"^  {flag} ", flags, re.MULTILINE)) == 1, flag
    assert "(default: None)" not in out and flags.count("(default: ") >= 7
    for line in re.findall(r"^  python \w+\.py (.*)", out, re.MULTILINE):
        parse(line.split())  # its examples work


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
