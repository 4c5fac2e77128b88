"""Validation during training: every --eval_every epochs, a row of evaluations.csv compares the run with real slices.

validation = Validation(slices, z_dim=256, num_classes=0, device="cpu")     # RunSlices
validation(averaged, critic, batch_size=16)["kid"]
"""

import numpy as np
import torch

from analysis.distances import NEIGHBOURS, Features, kid, mirror_half, prdc
from dataset import resize, to_float, to_uint8
from modules import classes_of
from utils import random_stream

VALIDATED = 512  # generated slices per validation, and the largest number of real ones from each set
VALIDATION = "kid", "kid_train", "precision", "recall", "score_train", "score_validation", "score_generated", "overfitting"


class Validation:
    """Measures the averaged generator (standardised KID, precision, recall) and the critic's scores of validation slices.

    slices: RunSlices. kid, precision and recall compare with the validation slices, in a run that is chosen by them, else with the
    training slices, as kid_train always does. The features of the real slices are computed once. mirror: real slices go through
    `mirror_half`, since the generator has learnt mirrored ones, too.
    Generated slices have the classes in the shares of the training slices. Every call uses the same latents, noise and real
    slices, so that only the networks change from row to row.
    """

    def __init__(self, slices, z_dim, num_classes, device, mirror=False):
        self.device, self.features = device, Features(device)
        self.z = torch.randn(VALIDATED, z_dim, generator=random_stream("evaluation", 0)).to(device)
        self.real = {}  # {"train": (pixels uint8 [n, R, R], labels, features [n, D], groups [n]), "validation": ...}
        sets = {"train": (slices.train, slices.groups), "validation": (slices.validation, slices.validation_groups)}
        for name, (part, groups) in sets.items():
            if part is not None:
                rows = np.random.default_rng(0).permutation(len(part))[:VALIDATED]
                pixels = mirror_half(part[rows]) if mirror else part[rows]
                self.real[name] = pixels, torch.from_numpy(part.told(rows)), self.features(pixels), groups[rows]
        self.reference = "validation" if slices.record["validation"] else "train"
        labels = self.real["train"][1]
        labels = torch.cat([labels] * -(-VALIDATED // len(labels)))[:VALIDATED]
        self.labels = labels.to(device) if num_classes else None

    @torch.no_grad()
    def __call__(self, averaged, critic, batch_size):
        """{column of VALIDATION: float, nan where it cannot be measured}; the networks see `batch_size` slices at a time.

        A generator of a lower stage (training/growth.py) is compared at the size of the real slices, upscaled, so that rows can be
        compared; the critic scores slices of its own size.
        overfitting: (score_train - score_validation) / (score_train - score_generated): 0 if the critic scores validation slices
        like those it was trained on, 1 if it scores them like generated ones.
        """
        generated = self.generate(averaged, batch_size)
        side = generated.shape[-1]
        features = self.features(resize(generated, self.real["train"][0].shape[-1]))
        row = dict.fromkeys(VALIDATION, float("nan"))
        *_, real_features, groups = self.real[self.reference]
        row["kid"], row["kid_train"] = (1000 * kid(real, features) for real in (real_features, self.real["train"][2]))
        if len(real_features) > NEIGHBOURS:
            neighbourhoods = prdc(real_features, features, real_groups=groups)
            row |= {name: neighbourhoods[name] for name in ("precision", "recall")}
        scored = {"generated": (generated, self.labels)} | {name: real[:2] for name, real in self.real.items()}
        for name, (pixels, labels) in scored.items():
            scores = critic_scores(critic, resize(pixels, side), labels, batch_size, self.device)
            row[f"score_{name}"] = mean_score(scores, labels, critic)
        gap = row["score_train"] - row["score_generated"]
        if gap > 0:
            row["overfitting"] = (row["score_train"] - row["score_validation"]) / gap
        return row

    def generate(self, averaged, batch_size):
        """Slices of the fixed latents, uint8 [VALIDATED, R, R]."""
        rng, slices = random_stream("evaluation noise", 0, self.device), []
        for start in range(0, VALIDATED, batch_size):
            labels = None if self.labels is None else self.labels[start : start + batch_size]
            w = averaged["mapping"](self.z[start : start + batch_size], labels)
            slices.append(to_uint8(averaged["generator"](w, rng=rng)).cpu())
        return torch.cat(slices).numpy()


@torch.no_grad()
def critic_scores(critic, pixels, labels, batch_size, device):
    """Scores [n] of uint8 slices [N, R, R] in random order, with labels that a conditional critic is given.

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
    classes = classes_of(labels)[: len(scores)].to(scores.device)
    return torch.stack([scores[classes == label].mean() for label in classes.unique()]).mean().item()
