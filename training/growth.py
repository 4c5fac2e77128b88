"""Growing training: one run in stages of doubling resolution (Karras et al. 2018, arXiv:1710.10196, section 2, called K18).

    shares = stage_shares(16, 64)                           # {16: 1/21, 32: 5/21, 64: 1.0}: where in the run each stage ends
    state = grow(state, larger_state)                       # weights, averages and moments carried over
    source = read_source("model/all")                       # another run to start from, of the same or a lower resolution

Networks with the same channels differ by whole blocks, so everything learnt at a resolution stays: mapping network, generator
blocks and, behind its first layer, the critic. The image layers of new generator blocks start at 0, so that the generator's
images do not change but for their size. New critic blocks fade in: at the start the critic sees what it saw before.
"""

import copy
from typing import NamedTuple

import torch

from analysis.models import holds_generator, read_generator, weights_file
from modules import RELU_GAIN, Conv2d, build_generator, channels_at
from ops import BLACK, leaky_relu, resample
from training.checkpoint import has_checkpoint, read_checkpoint, restore
from training.recipes import as_flag
from utils import UserError, read_network

FIRST = 16  # pixels a side in the first stage
LONGEST = 16  # a stage takes four times the share of the stage before it, but at most so many times that of the first
FADE = 0.1  # new critic blocks fade in over this share of the images shown before


# ---------------------------------------------------------------------------------------------------------------------
# The schedule


def first_resolution(resolution, growing=True, reached=None):
    """The resolution of a new run's first stage; `reached`: that of the run whose networks it starts from, or None."""
    if not growing:
        return resolution
    return FIRST if reached is None else max(FIRST, min(resolution, 2 * reached))


def stage_shares(first, last, growing=True):
    """{resolution of a stage: share of the run at which it ends, 1.0 for the last}, from `first` to `last`, or of `last` alone."""
    sizes = [2**i for i in range((first if growing else last).bit_length() - 1, last.bit_length())]
    lengths = [min(4**i, LONGEST) for i in range(len(sizes))]
    return {size: sum(lengths[: i + 1]) / sum(lengths) for i, size in enumerate(sizes)}


def resolution_at(shares, done):
    """The resolution to train at when a share `done` of the run is over."""
    return next((size for size, end in shares.items() if done < end), max(shares))


def fade_images(images_before):
    """Images over which new critic blocks fade in."""
    return round(FADE * images_before)


class Stage(NamedTuple):
    """Images shown before a stage, and those over which the critic's new blocks fade in."""

    resolution: int
    images: int = 0
    fade_images: int = 0


def set_fade(critic, stage, images):
    """Set the weight of the critic's new blocks when `images` have been shown in all stages; drop the fade once it is over."""
    if critic.fade is not None and images - stage.images < stage.fade_images:
        critic.fade.alpha = max(0, images - stage.images) / stage.fade_images  # below 0 after resuming with larger batches
    else:
        critic.fade = None


# ---------------------------------------------------------------------------------------------------------------------
# Carrying weights over


class Fade:
    """The critic's shortcut while its first blocks are new: images at the old resolution through the old first layer, frozen.

    Its features are blended with those of the new blocks (K18, figure 2): those of the old layer alone at alpha = 0, those of the
    new blocks alone at alpha = 1.
    """

    def __init__(self, resolution, from_image):
        self.resolution, self.from_image, self.alpha = resolution, copy.deepcopy(from_image).requires_grad_(False), 0.0

    def __call__(self, images, x):
        old = leaky_relu(self.from_image(resample(images, self.resolution).to(x.dtype)))
        return torch.lerp(old, x, self.alpha)


def fade_state(fade):
    """What a checkpoint keeps of a critic's Fade, or of None."""
    return {} if fade is None else {"resolution": fade.resolution, "weights": fade.from_image.state_dict()}


def restore_fade(critic, saved):
    """Give the critic the Fade of which `fade_state` was saved."""
    critic.fade = None
    if saved:
        from_image = Conv2d(1, len(saved["weights"]["bias"]), 1, gain=RELU_GAIN)
        from_image.load_state_dict(saved["weights"])
        critic.fade = Fade(saved["resolution"], from_image.to(critic.score.weight.device))


@torch.no_grad()
def grow(old, new):
    """Carry a TrainingState over to one of the same or a higher resolution, whose blocks for the new resolutions stay untrained.

    Averaged weights and Adam's moments go with their weights, and random numbers continue. Returns `new`. What `new` is told and
    `old` was not, class or values, has no effect yet.
    """
    doublings = len(new.critic.blocks) - len(old.critic.blocks)
    for ours, theirs in ((old.model, new.model), (old.averaged, new.averaged)):
        carry_generator(ours, theirs)
    names = {name: critic_name(name, doublings) for name in old.critic.state_dict()}
    copy_weights(old.critic, new.critic, names)
    if doublings:
        new.critic.fade = Fade(old.resolution, old.critic.from_image)
    if old.critic.embedding is None and new.critic.embedding is not None:
        new.critic.embedding.weight.zero_()
    ignore_new_values(old.critic.embedding, new.critic.embedding)
    carry_moments(old.model, old.model_optimizer, new.model, new.model_optimizer, {name: name for name in old.model.state_dict()})
    carry_moments(old.critic, old.critic_optimizer, new.critic, new.critic_optimizer, names)
    for part in ("augmentation", "path_length", "critic_scale", "model_scale"):
        new.parts[part].load_state_dict(old.parts[part].state_dict())
    new.rng.set_state(old.rng.get_state())
    return new


def carry_generator(old, new):
    """Copy mapping network and generator of one ModuleDict into another of `modules.build_generator`, of at least its resolution.

    The image layers of further blocks become 0, and the background is again the bias of the last block (`modules.Generator`):
    images are those of `old` at the higher resolution, as `ops.resample` gives them.
    """
    copy_weights(old, new, {name: name for name in old.state_dict()})
    blocks, count = new["generator"].blocks, len(old["generator"].blocks)
    for block in blocks[count:]:
        block.to_image.weight.zero_()
        block.image_bias.zero_()
    if len(blocks) > count:
        blocks[count - 1].image_bias -= BLACK
        blocks[-1].image_bias += BLACK
    if old["mapping"].num_classes < new["mapping"].num_classes:  # columns for the class are appended to those for z
        before, here = old["mapping"].layers[0], new["mapping"].layers[0]
        here.weight.zero_()
        here.weight[:, : before.weight.shape[1]] = before.weight * (before.weight_gain / here.weight_gain)
        new["mapping"].w_mean.copy_(old["mapping"].w_mean.expand_as(new["mapping"].w_mean))
    else:
        ignore_new_values(old["mapping"].embedding, new["mapping"].embedding)


def ignore_new_values(old, new):
    """Let values that the LabelEmbedding `new` is told, but `old` (or None) was not, have no effect yet."""
    if new is not None and new.num_values and not (old and old.num_values):
        new.output.weight.zero_()


@torch.no_grad()
def upscaled(averaged, network):
    """The averaged ModuleDict as one of the network settings `network`, of at least its resolution, that draws the same images."""
    if averaged["generator"].resolution == network["resolution"]:
        return averaged
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        larger = build_generator(network)
    carry_generator(averaged, larger)
    return larger


def critic_name(name, doublings):
    """The name of a critic's weight in one of a higher resolution, whose first blocks are new; None for its first layer."""
    part, _, rest = name.partition(".")
    if part == "blocks":
        number, _, rest = rest.partition(".")
        return f"blocks.{int(number) + doublings}.{rest}"
    return None if part == "from_image" and doublings else name


def copy_weights(old, new, names):
    """Copy weights and buffers into those that `names`, {name in old: name in new}, gives, where the shapes are the same."""
    target = new.state_dict()
    for name, value in old.state_dict().items():
        if names[name] in target and target[names[name]].shape == value.shape:
            target[names[name]].copy_(value)


def carry_moments(old, old_optimizer, new, new_optimizer, names):
    """Copy Adam's moments of weights as `copy_weights` copies these; new weights begin without any."""
    target = dict(new.named_parameters())
    for name, weight in old.named_parameters():
        counterpart = target.get(names[name])
        if counterpart is not None and counterpart.shape == weight.shape and weight in old_optimizer.state:
            moments = {key: value.clone() for key, value in old_optimizer.state[weight].items()}
            new_optimizer.state[counterpart] = moments


# ---------------------------------------------------------------------------------------------------------------------
# Starting a new run with the networks of another one (train.py --start_from)


class Source(NamedTuple):
    """The run from which a new one starts: its checkpoint, and its network settings at the resolution it has reached.

    Or a copy by `analysis.models.share`, such as a bundled one: the content of generator.pt, without Adam's moments and, in some,
    without a critic: a new one begins.
    """

    folder: str
    checkpoint: dict
    network: dict

    @property
    def images(self):
        """Images that its networks have learnt from, in runs from which it started, too."""
        return self.checkpoint["images"] + self.checkpoint.get("images_before", 0)

    @property
    def is_copy(self):
        return "weights" in self.checkpoint

    @property
    def has_critic(self):
        return "critic" in self.checkpoint


def read_source(folder):
    """The Source in the folder that --start_from names; UserError if there is none."""
    if holds_generator(folder) and not has_checkpoint(folder):
        saved = read_generator(weights_file(folder, "last"))
        return Source(folder, saved, saved["network"])
    if not has_checkpoint(folder):
        raise UserError(f"--start_from {folder}: no run with a checkpoint.pt, and no generator.pt, in this folder")
    saved, network = read_checkpoint(folder, hint="--start_from takes another run"), read_network(folder)
    if not network:
        raise UserError(f"--start_from {folder}: its config.json cannot be read")
    return Source(folder, saved, network | {"resolution": saved["stage"]["resolution"]})


def check_source(found, network):
    """UserError if networks with the settings `network` cannot hold those of a Source."""
    folder, source = found.folder, found.network
    size, needed = source["resolution"], network["resolution"]
    if size > needed:
        raise UserError(f"--start_from {folder}: it was trained at {size}x{size}, so --resolution must be at least {size}")
    flags = ("channel_base", "channel_max")
    channels = [[channels_at(2**i, *(n[flag] for flag in flags)) for i in range(2, size.bit_length())] for n in (source, network)]
    if channels[0] != channels[1] or any(source[name] != network[name] for name in ("mapping_layers", "z_dim", "w_dim")):
        fitting = " ".join(as_flag(name, source[name]) for name in (*flags, "mapping_layers"))
        raise UserError(f"--start_from {folder}: its networks have other sizes; {fitting} would fit")
    if source["values"] not in ([], network.get("values", [])) or source["num_classes"] > network["num_classes"]:
        told = ",".join(["class", *source["values"]])
        raise UserError(f"--start_from {folder}: it is told {told}; so must the new run be: --classes all --conditional {told}")


def start_from(source, new, old):
    """Carry the weights of a Source over into the TrainingState `new`, by way of `old`, which has its networks."""
    try:
        if source.is_copy:
            for part in ("model", "averaged"):
                old.parts[part].load_state_dict(source.checkpoint["weights"])
            if source.has_critic:
                old.critic.load_state_dict(source.checkpoint["critic"])
        else:
            restore(old.parts, source.checkpoint)
    except Exception as error:
        raise UserError(f"--start_from {source.folder}: its weights do not fit its network ({type(error).__name__})") from None
    return grow(old, new)


def describe_source(source, network):
    """A line that says what a new run with the settings `network` takes over from a Source, and what is new in it."""
    new, size = [], source.network["resolution"]
    if size < network["resolution"]:
        new.append(f"blocks above {size}x{size} and the critic's first layer")
    if source.is_copy:
        new.append("Adam's moments")
    if not source.has_critic:
        new.append("the critic, which makes slices worse before they get better")
    told, before = (["class"] * bool(settings["num_classes"]) + settings["values"] for settings in (network, source.network))
    if added := [name for name in told if name not in before]:
        new.append(f"what it is told ({', '.join(added)})")
    return f"starting from {source.folder} ({source.images / 1000:.1f} kimg); new: {', '.join(new) or 'nothing'}"
