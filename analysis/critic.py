"""The scores that a critic gives to slices, in training and on held-out people."""

import torch

from dataset import to_float


@torch.no_grad()
def critic_scores(critic, pixels, labels, batch_size, device):
    """Scores [n] of uint8 slices [N, R, R] in random order, with labels int64 [N] that a class-conditional critic is given.

    Scores depend on the other slices in a batch (minibatch standard deviation), so only full batches are scored: n is N
    rounded down to a multiple of `batch_size`, or N if there is not one full batch.
    """
    labels = labels.to(device) if critic.embedding is not None else None
    scores = []
    for start in range(0, max(1, len(pixels) - batch_size + 1), batch_size):
        images = to_float(torch.as_tensor(pixels[start : start + batch_size]).to(device))
        scores.append(critic(images, None if labels is None else labels[start : start + batch_size]))
    return torch.cat(scores)


def mean_score(scores, labels, critic):
    """Mean of scores [n], a float; for a class-conditional critic, the mean of the classes' means, by labels [N], N >= n.

    The offset between classes can exceed that between real and generated, and the splits hold the classes in other proportions.
    """
    if critic.embedding is None:
        return scores.mean().item()
    labels = labels[: len(scores)].to(scores.device)
    return torch.stack([scores[labels == label].mean() for label in labels.unique()]).mean().item()
