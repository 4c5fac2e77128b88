"""The critic: its scores of full batches, and their mean."""

import numpy as np
import pytest
import torch
from planted import Corner, Discs

from analysis.critic import critic_scores, mean_score


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
