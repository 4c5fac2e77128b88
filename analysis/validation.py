"""How training goes, held against real slices: what --eval_every asks for, a row of evaluations.csv at a time."""

import numpy as np
import torch

from analysis.distances import NEIGHBOURS, Features, kid, prdc
from dataset import to_float, to_uint8
from utils import random_stream

EVALUATED = 512  # generated slices, and at most as many real ones of each kind, in one evaluation
EVALUATION = "kid", "kid_test", "precision", "recall", "score_train", "score_test", "score_generated", "overfitting"


class Evaluator:
    """KID, precision and recall of the averaged generator, and what the critic thinks of slices it was not trained on.

    train: Slices; test: Slices or None (its figures are nan then). The real slices' features are computed once. The latents
    are the same every time.
    """

    def __init__(self, train, test, z_dim, num_classes, device):
        self.device, self.features = device, Features("vgg16", device)
        self.z = torch.randn(EVALUATED, z_dim, generator=random_stream("evaluation", 0)).to(device)
        self.labels = torch.arange(EVALUATED, device=device) % num_classes if num_classes else None
        self.real = {}  # {"train": (pixels uint8 [n, R, R], labels int64 [n], features [n, D])}
        for split, slices in (("train", train), ("test", test)):
            if slices is not None:
                chosen = np.random.default_rng(0).permutation(len(slices))[:EVALUATED]
                pixels = slices[chosen]
                self.real[split] = pixels, torch.from_numpy(slices.labels[chosen]), self.features(pixels)

    @torch.no_grad()
    def __call__(self, averaged, critic, batch_size):
        """{column of EVALUATION: float}."""
        rng = random_stream("evaluation noise", 0, self.device)
        fake = []
        for i in range(0, EVALUATED, batch_size):
            labels = None if self.labels is None else self.labels[i : i + batch_size]
            w = averaged["mapping"](self.z[i : i + batch_size], labels)
            fake.append(to_uint8(averaged["generator"](w, rng=rng)).cpu())
        fake = torch.cat(fake).numpy()  # [EVALUATED, R, R]
        features = self.features(fake)
        found = dict.fromkeys(EVALUATION, float("nan"))
        found["kid"] = 1000 * kid(self.real["train"][2], features)
        if len(self.real["train"][2]) > NEIGHBOURS:
            found |= {name: value for name, value in prdc(self.real["train"][2], features).items() if name in EVALUATION}
        kinds = {"generated": (fake, self.labels), **{split: real[:2] for split, real in self.real.items()}}
        for kind, slices in kinds.items():
            found[f"score_{kind}"] = mean_score(critic_scores(critic, *slices, batch_size, self.device), slices[1], critic)
        if "test" in self.real:
            found["kid_test"] = 1000 * kid(self.real["test"][2], features)
            gap = found["score_train"] - found["score_generated"]
            found["overfitting"] = (found["score_train"] - found["score_test"]) / gap if gap > 0 else float("nan")
        return found


@torch.no_grad()
def critic_scores(critic, pixels, labels, batch_size, device):
    """Scores, tensor [n], of uint8 pixels [N, R, R] in random order; labels [N] int64 of a conditional critic, else ignored.

    Whole batches only, where there is one, since the critic also looks at the spread within a batch.
    """
    labels = labels.to(device) if critic.embedding is not None else None
    scores = []
    for i in range(0, max(1, len(pixels) - batch_size + 1), batch_size):
        images = to_float(torch.as_tensor(pixels[i : i + batch_size]).to(device))
        scores.append(critic(images, None if labels is None else labels[i : i + batch_size]))
    return torch.cat(scores)


def mean_score(scores, labels, critic):
    """Mean of scores [n] of slices with labels [N], N >= n: of a conditional critic that of the classes' means, as a float.

    Such a critic may score one class above the other by more than real above generated, and sets hold more or less of each.
    """
    if critic.embedding is None:
        return scores.mean().item()
    labels = labels[: len(scores)].to(scores.device)
    return torch.stack([scores[labels == label].mean() for label in labels.unique()]).mean().item()
