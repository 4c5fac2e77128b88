"""Is training healthy? The spread of every block's activations, statistics of the images, and alerts that name what is wrong."""

import contextlib
import functools
import sys

import torch

IMAGE_STATISTICS = "diversity", "foreground_fraction", "overbright_fraction"
BACKGROUND, OVERBRIGHT = -0.9, 1.25  # pixels up to the first are background, above the second far brighter than white, which is 1


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def layer_names(resolution):
    """("w", "generator 4" ... "generator R", "image", "critic R" ... "critic 8", "score")."""
    sizes = [2**i for i in range(2, resolution.bit_length())]  # 4, 8, ..., R
    generator, critic = ([f"{part} {size}" for size in sizes] for part in ("generator", "critic"))
    return ("w", *generator, "image", *critic[:0:-1], "score")


class ActivationMonitor:
    """Records the standard deviation of the output of every block, by forward hooks, inside `recording()`; costs nothing outside.

    recorded: {name of `layer_names`: 0-dim tensor}, of each layer's first call.
    """

    def __init__(self, model, critic):
        self.recorded, self.active = {}, False
        generator = model["generator"]
        self.names = layer_names(generator.resolution)
        for name, layer in zip(self.names, [model["mapping"], *generator.blocks, generator, *critic.blocks, critic]):
            layer.register_forward_hook(functools.partial(self._record, name))

    @contextlib.contextmanager
    def recording(self, active=True):
        """If `active`, replace what is recorded by what is called in this context."""
        if active:
            self.recorded.clear()
        self.active = active
        try:
            yield
        finally:
            self.active = False

    def _record(self, name, _layer, _inputs, output):
        if self.active and name not in self.recorded:
            if isinstance(output, tuple):  # of a generator block
                x, scale, _ = output
                output = x * scale[:, :, None, None]
            self.recorded[name] = output.detach().float().std()

    def deviations(self):
        """{name of `layer_names`: number}."""
        return dict(zip(self.names, torch.stack([self.recorded[name] for name in self.names]).tolist()))


def _spread(images):
    """The standard deviation of a pixel over the batch, averaged over pixels (Tensor.std takes 20 times as long on a CPU)."""
    return ((images - images.mean(0)).square().sum(0) / (len(images) - 1)).sqrt().mean()


@torch.no_grad()
def image_statistics(fake, real):
    """Compare generated images with as many real ones, both [N, 1, R, R]: {name of IMAGE_STATISTICS: 0-dim tensor}.

    diversity: the standard deviation of a pixel over the batch, averaged over pixels, divided by that of real images.
    foreground_fraction: the share of pixels that are not black, divided by that of real images.
    overbright_fraction: the share of pixels far brighter than white.
    """
    diversity = _spread(fake.clamp(-1, 1)) / _spread(real).clamp(min=1e-6)
    foreground = (fake > BACKGROUND).float().mean() / (real > BACKGROUND).float().mean().clamp(min=1e-6)
    return dict(zip(IMAGE_STATISTICS, (diversity, foreground, (fake > OVERBRIGHT).float().mean())))


def memory_gib(device):
    """Peak memory so far in GiB: of the CUDA device, else of this process; nan where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


# ---------------------------------------------------------------------------------------------------------------------
# Alerts

ALERTS = {  # name: (conditions on a row of losses.csv or evaluations.csv, all of which hold, what they mean and what may help)
    "generator collapsed": (
        [("diversity", "<", 0.1)],
        "its images are nearly all the same ({diversity:.2f} of the real spread); a new run with a lower --lr or a higher "
        "--lambda_gp may help",
    ),
    "generator black": (
        [("foreground_fraction", "<", 0.1)],
        "its images are nearly black ({foreground_fraction:.2f} of the real foreground)",
    ),
    "generator saturated": (
        [("overbright_fraction", ">", 0.25)],
        "{overbright_fraction:.0%} of its pixels are far brighter than white; a lower --lr may help",
    ),
    "critic won": (
        [("separation", ">", 0.999), ("images", ">", 50_000)],
        "it tells every generated slice from every real one; a higher --lambda_gp or --augment ada may help",
    ),
    "critic lost": (
        [("separation", "<", -0.2)],
        "it scores most generated slices above real ones, so the generator learns the wrong way; a new run with a lower --lr or "
        "a larger --batch_size may help",
    ),
    "low diversity": (
        [("recall", "<", 0.1), ("precision", ">", 0.5)],
        "generated slices look real (precision {precision:.2f}) but cover few of the real ones (recall {recall:.2f}); an earlier "
        "generator may be better: best.pt is the one with the lowest KID",
    ),
    "critic overfits": (
        [("overfitting", ">", 0.5)],
        "it scores validation slices {overfitting:.0%} of the way from training slices to generated ones; more slices or "
        "--augment ada may help, and best.pt is the generator with the lowest KID",
    ),
}
PATIENCE = 5  # consecutive rows of losses.csv before an alert; an evaluation, which averages over many images, needs one


class Alerts:
    """Reports a problem once when it begins, from rows of losses.csv and of evaluations.csv."""

    def __init__(self):
        self.rows_in_a_row = dict.fromkeys(ALERTS, 0)

    def check(self, row):
        """Lines for the problems that this row, {column: number}, confirms; a row without an alert's columns is no evidence."""
        lines = []
        for name, (conditions, meaning) in ALERTS.items():
            if not all(column in row for column, _, _ in conditions):
                continue
            holds = all(row[column] < bound if sign == "<" else row[column] > bound for column, sign, bound in conditions)
            self.rows_in_a_row[name] = self.rows_in_a_row[name] + 1 if holds else 0
            if self.rows_in_a_row[name] == (1 if "overfitting" in row else PATIENCE):
                lines.append(f"{name}: {meaning.format(**row)}")
        return lines
