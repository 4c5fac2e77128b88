"""The critic: its scores of full batches, their mean, and how it is read from a checkpoint."""

import os
import shutil

import numpy as np
import pytest
import torch
from planted import Corner, Discs

from analysis.critic import critic_scores, load_critic, mean_score
from analysis.models import load_model, share
from modules import Discriminator
from utils import UserError


@pytest.mark.parametrize("batch_size, count, sizes", [(30, 100, [30] * 3), (64, 20, [20]), (20, 20, [20])])
def test_critic_scores_full_batches_only_if_there_is_one(batch_size, count, sizes):
    critic, slices = Corner(), Discs(count, 0, 0)
    slices.pixels[:, 0, 0] = np.arange(count)
    scores = critic_scores(critic, slices.pixels, None, batch_size, torch.device("cpu"))
    assert critic.sizes == sizes
    np.testing.assert_allclose(scores, np.arange(sum(sizes)) / 255, atol=1e-6)


def test_mean_score_of_a_conditional_critic_does_not_depend_on_class_proportions():
    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    scores = torch.tensor([5.0, 6.0, 7.0, -2.0, -4.0])  # of full batches: the last slice was left out
    assert mean_score(scores, labels, Corner(conditional=True)) == pytest.approx((6 - 3) / 2)
    assert mean_score(scores, labels, Corner()) == pytest.approx(scores.mean().item())
    assert mean_score(scores[:3], labels, Corner(conditional=True)) == pytest.approx(6)  # one class alone


@pytest.mark.parametrize("run, conditional", [("AD", False), ("all-conditional", True)])
def test_load_critic_reads_the_checkpoint(models, run, conditional):
    model = load_model(os.path.join(models, run), "cpu")
    critic = load_critic(model)
    saved = torch.load(os.path.join(models, run, "checkpoint.pt"), weights_only=True)["critic"]
    assert isinstance(critic, Discriminator) and not critic.training
    assert not any(parameter.requires_grad for parameter in critic.parameters())
    assert all(torch.equal(value, saved[name]) for name, value in critic.state_dict().items())
    assert (critic.embedding is not None) == conditional
    assert load_critic(model._replace(images=model.images - 4)) is None  # best.pt of an earlier step, which had another critic


def test_load_critic_names_what_is_missing(models, tmp_path):
    run = shutil.copytree(os.path.join(models, "AD"), tmp_path / "AD")
    os.unlink(run / "config.json")
    with pytest.raises(UserError, match="checkpoint.pt: no critic can be read .* needs config.json"):
        load_critic(load_model(str(run), "cpu"))


def test_there_is_no_critic_beside_a_copied_generator(models, tmp_path):
    share(os.path.join(models, "AD"), str(tmp_path / "AD"))
    assert load_critic(load_model(str(tmp_path / "AD"), "cpu")) is None


def test_load_critic_refuses_a_changed_byte(models, tmp_path):
    run = shutil.copytree(os.path.join(models, "AD"), tmp_path / "AD")
    data = bytearray((run / "checkpoint.pt").read_bytes())
    data[len(data) // 2] ^= 1  # within the weights: torch.load would not notice
    (run / "checkpoint.pt").write_bytes(data)
    with pytest.raises(UserError, match="no critic can be read"):
        load_critic(load_model(str(run), "cpu"))
