"""The encoder of a generator: slice -> style vector, by a convolutional network that learns from generated slices alone.

    python -m analysis.encoder models/axial/all-conditional     # how good it is, on generated slices that it has not seen

    encoder = find_encoder(model, seed=0, progress=True)    # encoder.pt beside generator.pt; made if there is none
    encoded = encoder.encode(pixels)                        # uint8 [N, R, R] -> Encoded
    w = encoder.style_vectors(encoded.points)               # [N, w_dim]
    outside = encoder.outside(model, pixels, encoded) > 1   # bool [N]: what the model cannot draw

A generator gives any number of slices whose w is known, so finding w is a regression (Zhu et al. 2016, arXiv:1609.03552). Both
classes are drawn in equal numbers and no label enters the network: where encoded AD and NC slices lie apart, the slices differ. The
targets are the first principal components of w, each divided by its standard deviation; the network predicts a mean and a variance
of each (Nix and Weigend 1994), and the variances are calibrated on slices that it was not trained on. A mean is the expectation of
w given the slice: what the slice does not tell, since noise maps draw it too, stays at the mean of all w.
"""

import os
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from analysis.models import load_model, weights_checksum
from dataset import resize, to_float, to_uint8
from utils import (
    ArgumentParser,
    atomic_path,
    load_tensors,
    pick_device,
    pick_dtype,
    printable,
    random_stream,
    run_cli,
    save_tensors,
)

FILES = {"last": "encoder.pt", "best": "best_encoder.pt"}  # of a run; each belongs to one of models.WEIGHTS
SIDE, COMPONENTS, WIDTH, HIDDEN = 64, 64, 32, 256  # pixels of a slice, principal components of w, channels, hidden units
SLICES, HELD_OUT, STEPS = 10240, 2048, 1600  # generated slices for training and for calibration; steps
BATCH, RATE, DECAY, AVERAGE = 64, 2e-3, 0.01, 0.99  # of AdamW, and of a moving average of the weights
DRAWN = 32  # slices that the generator draws at once
COVERAGE = 0.9, 1.6449  # share of held-out slices within so many standard deviations, after calibration
REFUSED = 0.01  # of held-out generated slices
COARSE = 8  # pixels a side, at which reconstructions are compared: at finer ones real slices differ from all generated ones


class Encoded(NamedTuple):
    """Encoded slices."""

    points: np.ndarray  # float32 [N, K], in units of the standard deviations of the principal components of w
    deviation: np.ndarray  # float32 [N, K], standard deviations of the components given the slice


class Normal(nn.Module):
    """A normal distribution fitted to a sample, for squared Mahalanobis distances."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size))

    def fit(self, sample, shrinkage=0.1):
        """Fit to [N, size]; the covariance is shrunk towards a multiple of the identity (Ledoit and Wolf 2004)."""
        self.centre = sample.mean(0)
        covariance = torch.cov((sample - self.centre).cpu().double().T).reshape(len(self.centre), -1)
        identity = torch.eye(len(covariance), dtype=torch.double)
        level = covariance.trace() / len(covariance) + 1e-9
        lower = torch.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * level * identity)
        self.whitening = torch.linalg.inv(lower).to(self.centre).contiguous()

    def forward(self, x):
        return ((x - self.centre) @ self.whitening.T).square().mean(1)


class Encoder(nn.Module):
    """The network with what its numbers mean; its state is what encoder.pt holds, as float16.

    mean [w_dim], basis [K, w_dim]: w = mean + points @ basis; scale [K]: factors of the standard deviations.
    """

    def __init__(self, side, w_dim):
        super().__init__()
        self.side, count = side, min(COMPONENTS, w_dim)
        channels, layers = [1, WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH], []
        for i, (before, after) in enumerate(zip(channels, channels[1:])):
            size = 3 if i else 5
            layers += [nn.Conv2d(before, after, size, 2, size // 2), nn.SiLU()]
        features = channels[-1] * (side // 16) ** 2
        layers += [nn.Flatten(), nn.Linear(features, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2 * count)]
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("basis", torch.zeros(count, w_dim))
        self.register_buffer("scale", torch.ones(count))
        self.disagreement, self.residual, self.both = Normal(count), Normal(COARSE**2), Normal(3)
        self.register_buffer("limit", torch.ones(()))

    def forward(self, images):
        """Images [N, 1, side, side] in [-1, 1] -> means and logarithms of uncalibrated variances, float32 [N, K]."""
        return self.network(images.contiguous(memory_format=torch.channels_last)).float().chunk(2, 1)

    @torch.no_grad()
    def encode(self, pixels):
        """Encoded slices uint8 [N, R, R], R at least the encoder's side."""
        means, deviations = [], []
        for start in range(0, len(pixels), 256):
            mean, variance = self(to_float(self.reduce(pixels[start : start + 256])))
            means.append(mean.cpu())
            deviations.append((variance.clamp(-8, 4).div(2).exp() * self.scale).cpu())
        return Encoded(torch.cat(means).numpy(), torch.cat(deviations).numpy())

    def reduce(self, pixels):
        """uint8 [N, R, R] -> uint8 [N, side, side] on the encoder's device."""
        return torch.from_numpy(resize(np.ascontiguousarray(pixels), self.side)).to(self.mean.device)

    def style_vectors(self, points):
        """w float32 [N, w_dim], on the encoder's device, of points [N, K]."""
        return self.mean + torch.as_tensor(points, device=self.mean.device) @ self.basis

    @torch.no_grad()
    def outside(self, model, pixels, encoded, label=None):
        """How far slices uint8 [N, R, R] lie outside what the Model can draw, float [N]: above 1, further than 99% of its own.

        Each slice is drawn from its w and encoded again. Three numbers are judged by their joint distribution over generated
        slices: the disagreement of the two encodings, the error of the reconstruction at COARSE pixels, and its loss of fine
        detail. `label` names a progress bar.
        """
        return (self.both(self.numbers(*self.reproduce(model, pixels, encoded, label))) / self.limit).cpu().numpy()

    def reproduce(self, model, pixels, encoded, label=None):
        """Of slices drawn again, less the slices: points [N, K], coarse pixels [N, COARSE^2], and `fine_detail` [N, 1]."""
        found, w, dtype = [], self.style_vectors(encoded.points), pick_dtype(None, model.device)
        with tqdm(total=len(pixels), desc=label, unit=" slices", disable=None if label else True) as bar:
            for start in range(0, len(pixels), DRAWN):
                rows = slice(start, start + DRAWN)
                drawn = to_uint8(model.generator(w[rows], "fixed", dtype=dtype)).cpu().numpy()
                x, y = (to_float(self.reduce(images)) for images in (pixels[rows], drawn))
                points = self(y)[0] - torch.as_tensor(encoded.points[rows], device=y.device)
                found.append((points, F.adaptive_avg_pool2d(y - x, COARSE).flatten(1), (fine_detail(y) - fine_detail(x))[:, None]))
                bar.update(len(x))
        return [torch.cat(parts) for parts in zip(*found)]

    def numbers(self, points, coarse, detail):
        """The three numbers [N, 3] of what `reproduce` returns."""
        distances = torch.stack([self.disagreement(points), self.residual(coarse)], 1)
        return torch.cat([distances.clamp_min(1e-6).log(), detail], 1)


def fine_detail(images):
    """Logarithm [N] of the mean square of what a blur over 3x3 pixels takes from images [N, 1, R, R]."""
    blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return ((images - blurred).square().mean((1, 2, 3)) + 1e-5).log()


# ---------------------------------------------------------------------------------------------------------------------
# Training


@torch.no_grad()
def draw_slices(model, count, side, seed, progress=False):
    """(uint8 [count, side, side], w [count, w_dim]) on the CPU: random noise, the labels of the Model in turn."""
    rng, drawn, styles = random_stream("encoder", seed), [], []
    noise_rng, dtype = random_stream("encoder noise", seed, model.device), pick_dtype(None, model.device)
    with tqdm(total=count, desc="encoder: drawing", unit=" slices", disable=None if progress else True) as bar:
        for start in range(0, count, DRAWN):
            z = torch.randn(DRAWN, model.mapping.z_dim, generator=rng).to(model.device)
            classes = torch.arange(DRAWN, device=model.device) % len(model.labels)
            w = model.mapping(z, model.mapping.labels_of(z, classes) if model.is_conditional else None)
            images = to_uint8(model.generator(w, "random", noise_rng, dtype)).cpu().numpy()
            drawn.append(resize(images, side))
            styles.append(w.cpu())
            bar.update(min(DRAWN, count - start))
    return np.concatenate(drawn)[:count], torch.cat(styles)[:count]


def augment(images, rng):
    """Images [N, 1, R, R] in [-1, 1] with other grey levels, blurred or sharpened, with grain, as scanners differ."""

    def draw(low, high):
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=rng).to(images)

    x = draw(0.85, 1.15) * ((images + 1) / 2).clamp_min(1e-4) ** draw(0.8, 1.25)
    x = x + draw(-0.5, 1) * (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x)
    x = x + draw(0, 0.04) * torch.randn(x.shape, generator=rng).to(x)
    return 2 * x.clamp(0, 1) - 1


def principal_components(w, count):
    """(mean [D], basis [count, D]) of w [N, D]: unit vectors times the standard deviation along them."""
    mean = w.mean(0)
    _, values, vectors = torch.linalg.svd((w - mean).cpu().double(), full_matrices=False)
    return mean, (vectors[:count] * values[:count, None] / len(w) ** 0.5).to(w).contiguous()


def untrained_encoder(model, seed=0):
    """An Encoder for a Model with random weights, by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(min(SIDE, model.resolution), model.mapping.w_dim).to(model.device).eval().requires_grad_(False)


def train_encoder(model, seed=0, progress=False):
    """The Encoder of a Model, in evaluation mode: trained on SLICES of its slices, calibrated on HELD_OUT others."""
    pixels, w = draw_slices(model, SLICES + HELD_OUT, min(SIDE, model.resolution), seed, progress)
    encoder = untrained_encoder(model, seed).cpu()
    encoder.mean, encoder.basis = principal_components(w[:SLICES], len(encoder.basis))
    points = (w - encoder.mean) @ torch.linalg.pinv(encoder.basis)
    encoder.to(model.device)
    fit_network(encoder, pixels[:SLICES], points[:SLICES], seed, progress)
    encoder.load_state_dict({name: x.half().float() for name, x in encoder.state_dict().items()})  # as it will be read
    calibrate(encoder, model, pixels[SLICES:], points[SLICES:])
    return encoder


def fit_network(encoder, pixels, points, seed, progress):
    """Train the network on slices uint8 [N, side, side] and their points [N, K] by the normal likelihood of the points."""
    device = encoder.mean.device
    network = encoder.requires_grad_(True).network
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.05, cycle_momentum=False)
    rng, dtype, pixels = random_stream("encoder batches", seed), pick_dtype(None, device), torch.from_numpy(pixels)
    with tqdm(total=STEPS * BATCH, desc="encoder: training", unit=" slices", disable=None if progress else True) as bar:
        for _ in range(STEPS):
            rows = torch.randint(len(pixels), [BATCH], generator=rng)
            images = augment(to_float(pixels[rows].to(device)), rng)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                mean, variance = encoder(images)
            variance = variance.clamp(-8, 4)  # a logarithm
            loss = ((points[rows].to(device) - mean).square() * (-variance).exp() + variance).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
            bar.update(BATCH)
    network.load_state_dict(averaged.module.state_dict())
    encoder.requires_grad_(False)


@torch.no_grad()
def calibrate(encoder, model, pixels, points):
    """Scale the deviations by one half of slices [N, side, side] with known points [N, K], and set the limit by the other."""
    share, deviations = COVERAGE
    half, encoded = len(pixels) // 2, encoder.encode(pixels)
    error = np.abs(points.numpy() - encoded.points) / encoded.deviation
    encoder.scale = torch.from_numpy(np.quantile(error, share, axis=0) / deviations).to(encoder.mean)
    reproduced = encoder.reproduce(model, pixels, encoded)
    first = [part[:half] for part in reproduced]
    encoder.disagreement.fit(first[0])
    encoder.residual.fit(first[1])
    encoder.both.fit(encoder.numbers(*first), 0.0)
    encoder.load_state_dict({name: x.half().float() for name, x in encoder.state_dict().items()})
    encoder.limit = encoder.both(encoder.numbers(*reproduced)[half:]).quantile(1 - REFUSED).half().float()


# ---------------------------------------------------------------------------------------------------------------------
# Files


def find_encoder(model, seed=0, progress=False):
    """The Encoder of a Model: from its folder, if it holds that of this generator, else trained and saved there.

    Notes on stderr name an encoder that is another generator's or damaged, and a folder that cannot be written to.
    """
    path, owner = os.path.join(model.folder, FILES[model.which]), weights_checksum(model)

    def tell(text):
        print(printable(f"note: {path}: {text}"), file=sys.stderr)

    if os.path.exists(path):
        try:
            saved = load_tensors(path)
            if saved["generator"] == owner:
                encoder = Encoder(saved["side"], model.mapping.w_dim).to(model.device).eval().requires_grad_(False)
                encoder.load_state_dict(saved["encoder"])  # float16 becomes float32
                return encoder
            tell("the encoder of another generator; it is made again")
        except Exception as error:  # a damaged file raises nearly anything
            tell(f"no encoder ({type(error).__name__}); it is made again")
    encoder = train_encoder(model, seed, progress)
    state = {name: x.half() for name, x in encoder.state_dict().items()}
    try:
        with atomic_path(path) as temporary:
            save_tensors({"generator": owner, "side": encoder.side, "encoder": state}, temporary)
    except OSError as error:
        tell(f"not saved ({error.strerror}), so the next command makes it again")
    return encoder


# ---------------------------------------------------------------------------------------------------------------------
# The command


def measure(model, encoder, count=1000, seed=1):
    """{what: number} of `count` unseen generated slices: R^2 of the components and of w, coverage of 90% intervals, and the share
    that is refused, as they are and changed."""
    pixels, w = draw_slices(model, count, encoder.side, seed)
    encoded, w = encoder.encode(pixels), w.to(encoder.mean)
    points = ((w - encoder.mean) @ torch.linalg.pinv(encoder.basis)).cpu().numpy()
    explained = 1 - np.square(points - encoded.points).mean(0) / points.var(0)
    left = (encoder.style_vectors(encoded.points) - w).square().sum() / (w - w.mean(0)).square().sum()
    covered = np.abs(points - encoded.points) < COVERAGE[1] * encoded.deviation
    found = {"R^2 of the components": explained.mean(), "of the first eight": explained[:8].mean(), "of w": 1 - left.item()}
    found["coverage of 90% intervals"] = covered.mean()
    some, third = pixels[: max(1, count // 5)], encoder.side // 3
    black = some.copy()
    black[:, third : 2 * third, third : 2 * third] = 0
    noisy = (some + np.random.default_rng(seed).normal(0, 50, some.shape)).round().clip(0, 255).astype(np.uint8)
    changed = {
        "generated": pixels,
        "mirrored": some[:, :, ::-1],
        "upside down": some[:, ::-1],
        "noisy": noisy,
        "blacked out": black,
    }
    for name, slices in changed.items():
        found[f"refused: {name}"] = (encoder.outside(model, slices, encoder.encode(slices)) > 1).mean()
    return {name: float(value) for name, value in found.items()}


def main(argv=None):
    parser = ArgumentParser("Measure the encoder of a run, which is made if there is none.", "-m analysis.encoder model/AD")
    parser.prog = "-m analysis.encoder"
    parser.add_argument("run", help="folder of a run")
    args = parser.parse_args(argv)
    model = load_model(os.path.normpath(args.run), pick_device("auto"))
    for name, value in measure(model, find_encoder(model, progress=True)).items():
        print(f"{name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    run_cli(main)
