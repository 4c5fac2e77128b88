"""Validation during training: every --eval_every epochs, a row of evaluations.csv compares the run with real slices.

validation = Validation(train, test, z_dim=256, num_classes=0, device="cpu")
validation(averaged, critic, batch_size=16)["kid_test"]
"""

import numpy as np
import torch

from analysis.critic import critic_scores, mean_score
from analysis.distances import NEIGHBOURS, Features, kid, mirror_half, prdc
from dataset import resize, to_uint8
from utils import random_stream

VALIDATED = 512  # generated slices per validation, and the largest number of real ones from each split
VALIDATION = "kid", "kid_test", "precision", "recall", "score_train", "score_test", "score_generated", "overfitting"


class Validation:
    """Measures the averaged generator (standardised KID, precision, recall) and the critic's scores of held-out slices.

    train: Slices; test: Slices or None (columns that need it are nan then). The features of the real slices are computed once.
    groups [N]: the people of the N training slices, for the balls of `distances.prdc`; None: each slice is one.
    mirror: real slices go through `mirror_half`, since the generator has learnt mirrored ones, too.
    Every call uses the same latents, noise and real slices, so that only the networks change from row to row.
    """

    def __init__(self, train, test, z_dim, num_classes, device, groups=None, mirror=False):
        self.device, self.features = device, Features(device)
        self.z = torch.randn(VALIDATED, z_dim, generator=random_stream("evaluation", 0)).to(device)
        self.labels = torch.arange(VALIDATED, device=device) % num_classes if num_classes else None
        self.real = {}  # {"train": (pixels uint8 [n, R, R], labels int64 [n], features [n, D]), "test": ...}
        for split, slices in (("train", train), ("test", test)):
            if slices is not None:
                rows = np.random.default_rng(0).permutation(len(slices))[:VALIDATED]
                if split == "train":
                    self.groups = None if groups is None else groups[rows]
                pixels = mirror_half(slices[rows]) if mirror else slices[rows]
                self.real[split] = pixels, torch.from_numpy(slices.labels[rows]), self.features(pixels)

    @torch.no_grad()
    def __call__(self, averaged, critic, batch_size):
        """{column of VALIDATION: float, nan where it cannot be measured}; the networks see `batch_size` slices at a time.

        A generator of a lower stage (training/growth.py) is compared at the size of the real slices, upscaled, so that rows can be
        compared; the critic scores slices of its own size.
        overfitting: (score_train - score_test) / (score_train - score_generated): 0 if the critic scores held-out slices
        like those it was trained on, 1 if it scores them like generated ones.
        """
        generated = self.generate(averaged, batch_size)
        side = generated.shape[-1]
        features = self.features(resize(generated, self.real["train"][0].shape[-1]))
        row = dict.fromkeys(VALIDATION, float("nan"))
        train_features = self.real["train"][2]
        row["kid"] = 1000 * kid(train_features, features)
        if "test" in self.real:
            row["kid_test"] = 1000 * kid(self.real["test"][2], features)
        if len(train_features) > NEIGHBOURS:
            neighbourhoods = prdc(train_features, features, real_groups=self.groups)
            row |= {name: neighbourhoods[name] for name in ("precision", "recall")}
        scored = {"generated": (generated, self.labels)} | {split: real[:2] for split, real in self.real.items()}
        for kind, (pixels, labels) in scored.items():
            scores = critic_scores(critic, resize(pixels, side), labels, batch_size, self.device)
            row[f"score_{kind}"] = mean_score(scores, labels, critic)
        gap = row["score_train"] - row["score_generated"]
        if gap > 0:
            row["overfitting"] = (row["score_train"] - row["score_test"]) / gap
        return row

    def generate(self, averaged, batch_size):
        """Slices of the fixed latents, uint8 [VALIDATED, R, R]."""
        rng, slices = random_stream("evaluation noise", 0, self.device), []
        for start in range(0, VALIDATED, batch_size):
            labels = None if self.labels is None else self.labels[start : start + batch_size]
            w = averaged["mapping"](self.z[start : start + batch_size], labels)
            slices.append(to_uint8(averaged["generator"](w, rng=rng)).cpu())
        return torch.cat(slices).numpy()
