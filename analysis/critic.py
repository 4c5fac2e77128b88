"""The critic of a run, read from its checkpoint, and the scores that it gives."""

import os

import torch

from dataset import to_float
from modules import Discriminator
from utils import UserError, load_tensors, read_network


def load_critic(model):
    """The critic that was trained beside the weights of a Model, from its run's checkpoint.pt, in evaluation mode.

    None without one: a copied generator has none, and where best.pt is older than checkpoint.pt, its critic is no longer kept.
    UserError if the file cannot be read.
    """
    path = os.path.join(model.folder, "checkpoint.pt")
    if not os.path.exists(path):
        return None
    network = read_network(model.folder)
    try:
        saved = load_tensors(path)
        if saved["images"] != model.images:
            return None
        reached, resolution = saved["stage"]["resolution"], network["resolution"]
        critic = Discriminator(*(network[name] for name in ("resolution", "channel_base", "channel_max", "num_classes")))
        if reached == resolution:
            critic.load_state_dict(saved["critic"])
    except Exception as error:
        raise UserError(
            f"{path}: no critic can be read ({type(error).__name__}); the evaluation needs config.json and "
            "an undamaged checkpoint.pt"
        ) from None
    if reached < resolution:
        raise UserError(
            f"{path}: this run still trains at {reached}x{reached} and can be evaluated once it has reached {resolution}"
        )
    return critic.to(model.device).eval().requires_grad_(False)


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
