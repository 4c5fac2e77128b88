"""The flags of dataset.py: their defaults, and what they need and refuse."""

import subprocess
import sys

import pytest
from conftest import ROOT

from report.dataset_command import MATCHED, parse_args
from utils import UserError


@pytest.mark.parametrize(
    "flag",
    [
        "--test_share 0",
        "--test_share 1",
        "--seed -1",
        "--resolution 100",
        "--classes MCI",
        "--match x",
        "--match age,",
        "--match sex",
    ],
)
def test_wrong_flags_are_rejected_with_their_name(flag):
    with pytest.raises(UserError, match=flag.split()[0]):
        parse_args(["--dataset_dir", "AD_NC", *flag.split()])


def test_match_takes_one_or_several_names_in_any_order_and_case():
    for text, expected in (("position", ("position",)), ("Sex, age,sex", ("age", "sex")), ("age,sex,position", MATCHED)):
        flags = ["--dataset_dir", "AD_NC", "--split_by_subject", "new", "--match", text]
        assert parse_args(flags).match == expected
    assert parse_args(flags[:4]).match == ()


def test_flags_need_no_pytorch():
    code = "import sys, report.dataset_command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
