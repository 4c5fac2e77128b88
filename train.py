"""Train StyleGAN2 on brain slices with the Wasserstein loss and gradient penalty (WGAN-GP).

    python train.py --dataset_dir AD_NC/train --classes AD

Reads the slices of one class or of both, and keeps everything of a run in <model_dir>/<AD|NC|all|all-conditional>. The loop
is algorithm 1 of Gulrajani et al. 2017 (arXiv:1704.00028) with one critic step per generator step, the drift term and the
moving average of the generator of Karras et al. 2018 (arXiv:1710.10196).
"""
import contextlib
import copy
import csv
import json
import math
import os
import signal
import sys
import time

import torch
from tqdm import tqdm

import figures
from dataset import CLASSES, Slices, batches, steps_per_epoch
from modules import Discriminator, build_generator
from utils import ArgumentParser, Interrupted, UserError, atomic_path, make_folder, number, pick_device, pick_dtype, run_cli

Z_DIM = W_DIM = 256
BETAS = 0.0, 0.99               # of Adam; no momentum, as in K18: the critic's gradients turn at every step
DRIFT = 1e-3                    # weight of critic(real)^2, which keeps the scores near zero (K18, appendix A.1)
EMA_IMAGES = 10_000             # half-life of the averaged generator, in images shown to the critic ...
EMA_RAMP = 0.05                 # ... but at most this share of the images shown so far, so that the start is forgotten
LOG_STEPS, LOG_SECONDS = 16, 20     # steps averaged into one row of losses.csv; fewer where they take longer than this
PICTURES, STYLES = 16, 512      # fixed latents drawn in fake_vs_real/ and mapped in styles/
TERMS = "critic_loss", "generator_loss", "wasserstein", "penalty", "drift", "gradient_norm"
COLUMNS = "step", "epoch", "images", "seconds", "images_per_second", *TERMS


# ---------------------------------------------------------------------------------------------------------------------
# The losses

def gradient_penalty(critic, real, fake, labels=None, rng=None):
    """Mean of (|grad critic(x)| - 1)^2 at points x between real and fake slices (Gulrajani et al. 2017, eq. 3).

    real, fake [N, 1, R, R] without gradient, labels [N] or None. Returns the penalty, differentiable by the critic's
    weights, and the mean gradient norm (1 when the critic is as steep as the Wasserstein distance wants it).
    """
    mix = torch.rand(len(real), 1, 1, 1, device=real.device, generator=rng).to(real.dtype)
    between = torch.lerp(real, fake, mix).requires_grad_()
    gradient, = torch.autograd.grad(critic(between, labels).sum(), between, create_graph=True)
    norm = gradient.square().sum((1, 2, 3)).sqrt()                                      # [N]
    return (norm - 1).square().mean(), norm.mean()


def critic_loss(critic, real, fake, labels, lambda_gp, rng=None, dtype=None):
    """The critic's loss E[critic(fake)] - E[critic(real)] + lambda_gp penalty + drift, and its terms by name.

    The Wasserstein estimate is E[critic(real)] - E[critic(fake)]. `dtype` is for the activations of the scores alone: the
    penalty stays at full precision, since near its goal it lives on the small difference between the norm and 1.
    """
    score_real, score_fake = critic(real, labels, dtype), critic(fake, labels, dtype)
    wasserstein = score_real.mean() - score_fake.mean()
    penalty, norm = gradient_penalty(critic, real, fake, labels, rng)
    penalty, drift = lambda_gp * penalty, DRIFT * score_real.square().mean()
    loss = penalty + drift - wasserstein
    return loss, {"critic_loss": loss, "wasserstein": wasserstein, "penalty": penalty, "drift": drift, "gradient_norm": norm}


@torch.no_grad()
def update_average(averaged, model, images, batch_size):
    """Move the averaged weights towards the model's: a half-life of EMA_IMAGES, shorter at the start; buffers are copied."""
    half_life = min(EMA_IMAGES, EMA_RAMP * images)
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - 0.5 ** (batch_size / half_life))
    for ours, theirs in zip(averaged.buffers(), model.buffers()):
        ours.copy_(theirs)


# ---------------------------------------------------------------------------------------------------------------------
# The loop

def build_networks(network):
    """The generator's half (a mapping network and a generator) and the critic, from the settings that config.json keeps."""
    critic = Discriminator(network["resolution"], network["channel_base"], network["channel_max"], network["num_classes"])
    return build_generator(network), critic


def train(args, slices, folder, config, device, dtype, deadline):
    """Train until `args.epochs`, the deadline (time.monotonic() seconds) or a signal; returns the process's exit status."""
    torch.manual_seed(args.seed)
    model, critic = (network.to(device) for network in build_networks(config["network"]))
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    adam = {"lr": args.lr, "betas": BETAS, "fused": device.type in ("cpu", "cuda")}
    optimizer_g = torch.optim.Adam(model.parameters(), **adam)
    optimizer_c = torch.optim.Adam(critic.parameters(), **adam)
    rng = torch.Generator(device).manual_seed(args.seed)
    run = Run(folder, config, slices, device, averaged,
              {"model": model, "critic": critic, "averaged": averaged, "g": optimizer_g, "c": optimizer_c}, rng)
    step = run.resume() // args.batch_size if run.exists else 0
    for optimizer in (optimizer_g, optimizer_c):
        optimizer.param_groups[0].update(lr=args.lr, fused=adam["fused"])               # these may change on resuming
    per_epoch = steps_per_epoch(len(slices), args.batch_size)
    last_step = args.epochs * per_epoch
    if step >= last_step:
        print(f"{folder}: {args.epochs} epochs are done already; --epochs {2 * args.epochs} would go on")
        return 0
    if not run.exists:
        run.save(0, 0)

    def generate(z, labels):
        return model["generator"](model["mapping"](z, labels), rng=rng, dtype=dtype)

    data = batches(slices, args.batch_size, device, args.seed, start_step=step)
    terms, clock = [], time.monotonic()
    with Stopper() as stopper, progress_bar(folder, args, per_epoch, step) as bar:
        while step < last_step and not stopper.signum and time.monotonic() < deadline:
            real, labels = next(data)
            labels = labels if args.conditional else None
            fake = generate(torch.randn(args.batch_size, Z_DIM, device=device, generator=rng), labels)

            critic.requires_grad_(True)
            loss, term = critic_loss(critic, real, fake.detach(), labels, args.lambda_gp, rng, dtype)
            optimizer_c.zero_grad()
            loss.backward()
            optimizer_c.step()

            critic.requires_grad_(False)
            term["generator_loss"] = loss = -critic(fake, labels, dtype).mean()
            optimizer_g.zero_grad()
            loss.backward()
            optimizer_g.step()

            step += 1
            update_average(averaged, model, step * args.batch_size, args.batch_size)
            terms.append(torch.stack([term[name].detach() for name in TERMS]))
            bar.update(args.batch_size)
            saving = step % (args.save_every * per_epoch) == 0 or step == last_step
            if len(terms) == LOG_STEPS or saving or time.monotonic() - clock > LOG_SECONDS:
                means = torch.stack(terms).mean(0).tolist()                             # the only wait for the GPU
                run.log(step, step / per_epoch, step * args.batch_size, time.monotonic() - clock, means,
                        rate=len(terms) * args.batch_size / (time.monotonic() - clock))
                show_progress(bar, folder, step / per_epoch, dict(zip(TERMS, means)), args.epochs, deadline)
                terms, clock = [], time.monotonic()
            if saving:
                run.save(step * args.batch_size, step // per_epoch)
                clock = time.monotonic()
        if terms and not all(torch.isfinite(values).all() for values in terms):
            run.not_finite(step)
        run.save(step * args.batch_size, -(-step // per_epoch))
    return farewell(folder, step, stopper.signum, args, per_epoch)


def progress_bar(folder, args, per_epoch, step):
    return tqdm(total=args.epochs * per_epoch * args.batch_size, initial=step * args.batch_size, unit=" images",
                desc=os.path.basename(folder), smoothing=0.1, mininterval=0.5 if sys.stderr.isatty() else 20,
                bar_format="{desc} {percentage:3.0f}%|{bar:16}| {rate_noinv_fmt}{postfix}")


def show_progress(bar, folder, epoch, terms, epochs, deadline):
    """Put epoch, losses and the time left, to the last epoch or the deadline, into the bar's next drawing."""
    rate = bar.format_dict["rate"] or (bar.n - bar.initial) / max(1e-9, bar.format_dict["elapsed"])
    left = min((bar.total - bar.n) / max(1e-9, rate), max(0, deadline - time.monotonic()))
    bar.set_description_str(f"{os.path.basename(folder)} epoch {min(int(epoch) + 1, epochs)}/{epochs}", refresh=False)
    bar.set_postfix_str(f"critic {terms['critic_loss']:.2f}, generator {terms['generator_loss']:.2f}, "
                        f"Wasserstein {terms['wasserstein']:.2f}, left {tqdm.format_interval(left)}", refresh=False)


class Stopper:
    """While it is entered, Ctrl-C and SIGTERM only set `signum`, so that the step and the save after it end in order.

    One that comes over two seconds after the first acts at once; an earlier one is its echo, as `timeout` and `make`, which
    signal a process and its whole group, send it.
    """
    def __enter__(self):
        self.signum, self.when = None, math.inf
        self.before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        for signum in self.before:
            signal.signal(signum, self.note)
        return self

    def note(self, signum, _frame):
        if time.monotonic() - self.when > 2:
            raise Interrupted(signum)
        if not self.signum:
            self.signum, self.when = signum, time.monotonic()

    def __exit__(self, *_):
        for signum, handler in self.before.items():
            signal.signal(signum, handler)


def farewell(folder, step, signum, args, per_epoch):
    """Say in one line what was reached and how to go on; returns the exit status."""
    kimg = step * args.batch_size / 1000
    if step >= args.epochs * per_epoch:
        print(f"{folder}: {args.epochs} epochs done, {kimg:.1f} kimg")
        return 0
    why = "stopped by " + signal.Signals(signum).name if signum else f"{args.max_minutes:g} minutes are over"
    print(f"{folder}: {why} in epoch {step // per_epoch + 1}, {kimg:.1f} kimg, saved; the same command goes on from here")
    return 128 + signum if signum else 0


# ---------------------------------------------------------------------------------------------------------------------
# What a run keeps

class Run:
    """The files of one run: saved so that a reader or a crash only ever meets whole ones, and read back to go on.

    parts: everything with a state_dict that goes on from a checkpoint, by name; rng: the generator of latents and noise.
    """
    def __init__(self, folder, config, slices, device, averaged, parts, rng):
        self.folder, self.config, self.slices, self.device = folder, config, slices, device
        self.averaged, self.parts, self.rng = averaged, parts, rng
        self.seconds, self.saved_images, self.rows = 0., None, []
        self.exists = os.path.exists(self.path("checkpoint.pt"))
        fixed = torch.Generator().manual_seed(0)                                        # the same latents in every run
        self.z = torch.randn(STYLES, Z_DIM, generator=fixed).to(device)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def resume(self):
        """Load checkpoint.pt into the parts and cut losses.csv there; returns the number of images shown so far."""
        try:
            state = torch.load(self.path("checkpoint.pt"), map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except Exception as error:
            raise UserError(f"{self.path('checkpoint.pt')} cannot be read ({type(error).__name__}); "
                            "--resume False starts anew and keeps the old folder under another name") from None
        if state["rng_device"] == self.device.type:
            self.rng.set_state(state["rng"])
        else:
            self.rng.manual_seed(state["images"])                                       # moved between CPU and CUDA
        self.seconds, self.saved_images = state["seconds"], state["images"]
        self.rows = self.read_losses(state["images"])
        self.write_losses()
        return state["images"]

    def read_losses(self, images):
        """Rows of losses.csv up to `images`; none if there is no such file, and without a row that a crash cut short."""
        rows = []
        with contextlib.suppress(OSError, ValueError), open(self.path("losses.csv"), newline="") as file:
            for row in list(csv.reader(file))[1:]:
                rows.append([float(value) for value in row])
        return [row for row in rows if len(row) == len(COLUMNS) and row[COLUMNS.index("images")] <= images]

    def log(self, step, epoch, images, seconds, means, rate):
        """Append one row to losses.csv; a value that is not finite ends the run with its last saved state kept."""
        if not all(map(math.isfinite, means)):
            self.not_finite(step)
        self.seconds += seconds
        self.rows.append([step, epoch, images, self.seconds, rate, *means])
        with open(self.path("losses.csv"), "a", newline="") as file:
            csv.writer(file).writerow(_digits(self.rows[-1]))

    def not_finite(self, step):
        raise UserError(f"{self.folder}: a loss is not finite at step {step}; the state saved at "
                        f"{self.saved_images / 1000:.1f} kimg is kept, run again with a lower --lr to go on from it")

    def write_losses(self):
        with atomic_path(self.path("losses.csv")) as path, open(path, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *map(_digits, self.rows)])

    def save(self, images, epoch):
        """Write every file of the run; pictures and styles under the number of the epoch that is done or under way."""
        if images == self.saved_images:
            return
        if self.saved_images is None:
            make_folder(self.path("fake_vs_real"), "--model_dir")
            make_folder(self.path("styles"), "--model_dir")
            self.write_losses()
            with atomic_path(self.path("config.json")) as path, open(path, "w") as file:
                json.dump(self.config, file, indent=2)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_path(self.path("checkpoint.pt")) as path:
            torch.save({**state, "images": images, "seconds": self.seconds, "rng": self.rng.get_state(),
                        "rng_device": self.device.type}, path)
        with atomic_path(self.path("generator.pt")) as path:
            torch.save({"network": self.config["network"], "classes": self.config["classes"], "images": images,
                        "weights": self.averaged.state_dict()}, path)
        self.saved_images = images
        self.draw(images, epoch)
        if self.rows:
            figures.plot_losses(self.rows, COLUMNS, self.path("losses.png"))
            figures.plot_loss_proportion(self.rows, COLUMNS, self.path("loss_proportion.png"))

    @torch.no_grad()
    def draw(self, images, epoch):
        """fake_vs_real/epoch_NNNN.png and styles/epoch_NNNN.npy, float32 [512, w_dim] (conditional: [2, 512, w_dim])."""
        mapping, generator = self.averaged["mapping"], self.averaged["generator"]
        classes = range(len(CLASSES)) if mapping.num_classes else [None]
        w = torch.stack([mapping(self.z, None if c is None else torch.full_like(self.z[:, 0], c, dtype=torch.long))
                         for c in classes])                                             # [classes, 512, w_dim]
        figures.save_array(w.squeeze(0).cpu().numpy(), self.path("styles", f"epoch_{epoch:04d}.npy"))
        w = w[:, :PICTURES // len(classes)].flatten(0, 1)
        fake = torch.cat([generator(part, noise="fixed") for part in w.split(4)])
        figures.save_fake_and_real(fake, self.slices, f"epoch {epoch}, {images / 1000:.1f} kimg",
                                   self.path("fake_vs_real", f"epoch_{epoch:04d}.png"))


def _digits(row):
    return [f"{value:.6g}" if isinstance(value, float) else value for value in row]


# ---------------------------------------------------------------------------------------------------------------------
# The command line

def parse_args(argv=None):
    parser = ArgumentParser("Train StyleGAN2 with WGAN-GP on brain slices. A run lives in <model_dir>/<classes>; "
                            "the same command goes on with it.")
    parser.add_argument("--dataset_dir", required=True, help="folder that holds AD/ and NC/, such as AD_NC/train")
    parser.add_argument("--classes", choices=("all", *CLASSES), default="all", help="slices to learn from")
    parser.add_bool("--conditional", False, "with --classes all: one model that is told the class")
    parser.add_argument("--model_dir", default="model", help="folder of the runs")
    parser.add_argument("--resolution", type=int, choices=[2 ** i for i in range(5, 11)], default=256, help="pixels a side")
    parser.add_argument("--epochs", type=number(int, 1), default=100, help="passes over the slices")
    parser.add_argument("--batch_size", type=number(int, 2), default=32, help="slices a step")
    parser.add_argument("--lr", type=number(float, 0, open_low=True), default=2e-3, help="Adam's learning rate, both networks")
    parser.add_argument("--lambda_gp", type=number(float, 0), default=10., help="weight of the gradient penalty")
    parser.add_argument("--channel_base", type=number(int, 32), default=8192,
                        help="feature maps at a resolution: channel_base / resolution ...")
    parser.add_argument("--channel_max", type=number(int, 1), default=256, help="... and at most this many")
    parser.add_argument("--max_minutes", type=number(float, 0, open_low=True), default=math.inf,
                        help="save and stop after this long")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto",
                        help="of activations, but for the penalty; auto is bfloat16 on a CPU with AMX, else float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--seed", type=number(int, 0, 2 ** 63 - 1), default=0, help="of weights, order, latents and noise")
    parser.add_bool("--resume", True, "go on with the run when there is one; False renames its folder and starts anew")
    parser.add_argument("--num_workers", type=number(int, 1), default=None,
                        help="threads that decode images on the first pass (default: one a core)")
    parser.add_argument("--save_every", type=number(int, 1), default=5, help="epochs from one save to the next")
    parser.add_bool("--dry_run", False, "check everything, print the plan and exit")
    args = parser.parse_args(argv)
    if args.conditional and args.classes != "all":
        raise UserError(f"--conditional True needs both classes: use it with --classes all, not {args.classes}")
    return args


def make_config(args, slices):
    """What config.json keeps: the network and the data, which a run cannot change, and the flags it was started with."""
    return {"network": {"resolution": args.resolution, "channel_base": args.channel_base, "channel_max": args.channel_max,
                        "z_dim": Z_DIM, "w_dim": W_DIM, "num_classes": len(CLASSES) if args.conditional else 0},
            "classes": list(CLASSES) if args.classes == "all" else [args.classes],
            "data": {"counts": slices.counts, "fingerprint": slices.fingerprint},
            "flags": vars(args) | {"max_minutes": None if args.max_minutes == math.inf else args.max_minutes},
            "torch": torch.__version__}


def check_same_run(folder, config):
    """Raise a UserError that names the flags by which `config` differs from the run in `folder` in network or data."""
    try:
        with open(os.path.join(folder, "config.json")) as file:
            kept = json.load(file)
        new, old = config["network"], kept["network"]
        differing = [f"--{key} {new[key]} (was {old[key]})" for key in ("resolution", "channel_base", "channel_max")
                     if new[key] != old[key]]
        if kept["data"]["fingerprint"] != config["data"]["fingerprint"]:
            differing.append(f"--dataset_dir {config['flags']['dataset_dir']} (other slices than "
                             f"{kept['flags']['dataset_dir']} held: {kept['data']['counts']}, now {config['data']['counts']})")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}/config.json cannot be read ({error}); --resume False starts anew") from None
    if differing:
        raise UserError(f"{folder} holds another run, differing in {', '.join(differing)}: choose another --model_dir, or "
                        "--resume False to set the old run aside")


def set_aside(folder):
    """Rename the folder of an old run to the first free <folder>.1, <folder>.2, ..."""
    free = next(i for i in range(1, 10 ** 6) if not os.path.exists(f"{folder}.{i}"))
    os.rename(folder, f"{folder}.{free}")
    print(f"the run in {folder} is now {folder}.{free}")


def estimate_memory(config, batch_size, dtype):
    """Bytes that training takes at its peak: weights with gradients, Adam's moments and the average, and what a critic step
    keeps for its two derivatives, counted by taking that step on PyTorch's "meta" device, which computes shapes only."""
    model, critic = (network.to("meta") for network in build_networks(config["network"]))
    count_g, count_c = (sum(p.numel() for p in network.parameters()) for network in (model, critic))
    size, kept = config["network"]["resolution"], {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes(), storage          # held, so that no two share an address
        return tensor
    labels = torch.zeros(batch_size, dtype=torch.long, device="meta") if config["network"]["num_classes"] else None
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fake = model["generator"](model["mapping"](torch.empty(batch_size, Z_DIM, device="meta"), labels), dtype=dtype)
        real = torch.empty(batch_size, 1, size, size, device="meta")
        critic_loss(critic, real, fake.detach(), labels, 10., dtype=dtype)
    return 4 * (5 * count_g + 4 * count_c) + sum(nbytes for nbytes, _ in kept.values())


def print_plan(args, slices, folder, config, device, dtype):
    counts = " + ".join(f"{n} {name}" for name, n in slices.counts.items())
    model, critic = build_networks(config["network"])
    millions = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (model, critic)]
    per_epoch = steps_per_epoch(len(slices), args.batch_size)
    state = "goes on" if os.path.exists(os.path.join(folder, "checkpoint.pt")) else "new"
    print(f"run         {folder} ({state})\n"
          f"images      {len(slices)} ({counts}) at {args.resolution}x{args.resolution}\n"
          f"parameters  generator {millions[0]:.2f} M, critic {millions[1]:.2f} M\n"
          f"device      {device}, activations in {str(dtype).removeprefix('torch.')}\n"
          f"memory      about {estimate_memory(config, args.batch_size, dtype) / 2 ** 30:.1f} GiB at batch {args.batch_size}\n"
          f"steps       {args.epochs} epochs of {per_epoch} = {args.epochs * per_epoch}, "
          f"{args.epochs * per_epoch * args.batch_size / 1000:.0f} kimg"
          + (f", or {args.max_minutes:g} minutes" if args.max_minutes < math.inf else ""))


def main(argv=None):
    start = time.monotonic()
    args = parse_args(argv)
    device = pick_device(args.device)
    dtype = pick_dtype(args.precision, device)
    slices = Slices(args.dataset_dir, args.classes, args.resolution, args.num_workers)
    folder = os.path.join(args.model_dir, args.classes + ("-conditional" if args.conditional else ""))
    config = make_config(args, slices)
    old = os.path.exists(os.path.join(folder, "checkpoint.pt"))
    if old and args.resume:
        check_same_run(folder, config)
    if args.dry_run:
        print_plan(args, slices, folder, config, device, dtype)
        return 0
    if old and not args.resume:
        set_aside(folder)
    make_folder(folder, "--model_dir")
    try:
        return train(args, slices, folder, config, device, dtype, start + 60 * args.max_minutes)
    except torch.OutOfMemoryError:
        raise UserError(f"{device} is out of memory at --batch_size {args.batch_size}: lower it, or --channel_base, or "
                        "--resolution (--dry_run prints an estimate)") from None


if __name__ == "__main__":
    run_cli(main)
