"""Generators that others have trained, as a generator.pt of this project: the same images from renamed and rescaled weights.

    saved = convert("G_ema.pt", ["AD", "NC"])           # what `models.load_model` reads: "network", "classes", "images", "weights"

Read are state dictionaries of stylegan2-ada-pytorch and of stylegan3 with its StyleGAN2 layers (NVlabs), and of stylegan2-pytorch
(rosinality). These networks compute what modules.py does (Karras et al. 2020, arXiv:1912.04958), but for constants:

- They multiply by sqrt(2) after a leaky ReLU, modules.py by RELU_GAIN before it. A leaky ReLU and a demodulated convolution scale
  with their input, so with biases and noise strengths times sqrt(2) SHRINK^l, features after style block l are SHRINK^l of theirs.
- Their noise has one strength per layer, here every channel's. Their fixed noise maps are left out: those here are seeded.
- Three channels become one of their luminance (ITU-R BT.601), as Pillow makes images grey, before values are cut to [-1, 1].
- The 1e-8 of demodulation is beside kernels of another scale: NVlabs' images differ by about 1e-8.

Not in such a file, so taken for granted: a slope of 0.2, mapping layers at 0.01 of the learning rate, no activation beyond
NVlabs' limit of 256 for float16.
"""

import math
import re

import torch

from modules import NOISE_LR, RELU_GAIN, MappingNetwork, channels_at
from utils import CLASSES, UserError, check_network, random_stream, reason

SHRINK = RELU_GAIN / math.sqrt(2)
LUMINANCE = (0.299, 0.587, 0.114)
AVERAGED = 10_000  # latents for the mean of w, where the file has none
ENDS = {  # rosinality's names of a layer's tensors: NVlabs'
    **{"conv.weight": "weight", "conv.modulation.weight": "affine.weight", "conv.modulation.bias": "affine.bias"},
    **{"noise.weight": "noise_strength", "activate.bias": "bias"},
    **{"conv.blur.kernel": "resample_filter", "upsample.kernel": "resample_filter"},
}
HOW = (
    "save its weights alone, where its own code runs: torch.save(G.state_dict(), 'weights.pt') with NVlabs' G = "
    "pickle.load(file)['G_ema'], or torch.save(torch.load(FILE, weights_only=False)['g_ema'], 'weights.pt') with rosinality's"
)


def convert(path, classes):
    """The content of a generator.pt from another code base's weights in the file `path`; `classes` that it was trained on.

    UserError, which says what is in the way: not weights alone, or a network that modules.py cannot compute exactly.
    """
    peer = read_weights(path)
    try:
        require_filter(peer)
        network = sizes(peer)
        weights = rescaled(peer, network)
        if peer:
            raise ValueError(f"this network has no place for {min(peer)}")
        return {"network": check_network(network), "classes": list(classes), "images": 0, "weights": weights}
    except KeyError as error:
        raise UserError(f"{path}: cannot become a generator of this project: it lacks {error.args[0]}") from None
    except (ValueError, RuntimeError, IndexError) as error:  # of other shapes
        raise UserError(f"{path}: cannot become a generator of this project: {str(error).splitlines()[0]}") from None


def read_weights(path):
    """{NVlabs' name: float64 tensor} of the generator in a file of either code base, without running code from it.

    Noise maps are left out. UserError: unreadable, code beside the weights, or no such generator.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except Exception:
        raise UserError(f"{path}: not weights alone, and code in it is not run: {HOW}") from None
    weights = next((saved[name] for name in ("G_ema", "g_ema") if name in saved), saved) if isinstance(saved, dict) else {}
    named = isinstance(weights, dict) and all(torch.is_tensor(x) for x in weights.values())
    if not named or weights.keys().isdisjoint({"synthesis.b4.const", "input.input"}):
        odd = any(str(name).startswith(("synthesis.L", "synthesis.input")) for name in weights)
        what = "StyleGAN3's alias-free layers, which modules.py does not have" if odd else f"no StyleGAN2 generator; {HOW}"
        raise UserError(f"{path}: {what}")
    if "input.input" in weights:
        average = {"mapping.w_avg": saved["latent_avg"].flatten()} if "latent_avg" in saved else {}
        weights = {nvlabs_name(name): x for name, x in weights.items() if not name.startswith("noises.")} | average
    return {name: x.double() for name, x in weights.items() if not name.endswith("noise_const")}


def nvlabs_name(name):
    """NVlabs' name of rosinality's; an unknown one stays."""
    match = re.fullmatch(r"(style|conv1|convs|to_rgb1|to_rgbs)(?:\.(\d+))?\.(.+)", name)
    if not match:
        return "synthesis.b4.const" if name == "input.input" else name
    number, end = int(match[2] or 0), match[3]
    layer = {
        "style": f"mapping.fc{number - 1}",  # style.0 has no weights
        "conv1": "synthesis.b4.conv1",
        "convs": f"synthesis.b{8 << number // 2}.conv{number % 2}",
        "to_rgb1": "synthesis.b4.torgb",
        "to_rgbs": f"synthesis.b{8 << number}.torgb",
    }[match[1]]
    return f"{layer}.{ENDS.get(end, end)}"


def require_filter(peer):
    """Take the filters out of `peer`; ValueError unless all are [1, 3, 3, 1] (of any scale, which follows from its use)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    for name in [name for name in peer if name.endswith("resample_filter")]:
        kernel = peer.pop(name)
        if kernel.shape != (4, 4) or not torch.allclose(kernel / kernel.sum(), torch.outer(taps, taps), atol=1e-6):
            raise ValueError(f"{name} is another filter than [1, 3, 3, 1]")


def sizes(peer):
    """Network settings, as in config.json, from the shapes of weights; KeyError or ValueError where there are none."""
    levels = sorted(int(match[1]) for name in peer if (match := re.fullmatch(r"synthesis\.b(\d+)\.conv1\.weight", name)))
    channels = [peer[f"synthesis.b{side}.conv1.weight"].shape[-4] for side in levels]
    base = max(side * count for side, count in zip(levels, channels))
    if channels != [channels_at(side, base, max(channels)) for side in levels]:
        raise ValueError(f"its channels {channels} are not min(channel_max, channel_base / resolution)")
    if peer["synthesis.b4.torgb.weight"].shape[-4] not in (1, 3):
        raise ValueError("images of one or three channels are needed")
    (w_dim, z_dim), embedding = peer["mapping.fc0.weight"].shape, peer.get("mapping.embed.weight")
    if embedding is not None:
        z_dim -= len(embedding)
        if embedding.shape != (z_dim, len(CLASSES)):
            raise ValueError(f"its labels are embedded by {list(embedding.shape)}, not by {[z_dim, len(CLASSES)]}")
    return {
        **{"resolution": max(levels), "channel_base": base, "channel_max": max(channels), "z_dim": z_dim, "w_dim": w_dim},
        "mapping_layers": sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in peer),
        **{"num_classes": 0 if embedding is None else len(CLASSES), "values": []},
    }


def rescaled(peer, network):
    """The weights of `modules.build_generator(network)` that draw the images of `peer`, whose tensors are taken out; float32."""
    weights, scale = {}, 1.0

    def take(ours, theirs, factor=1.0, parts=("weight", "bias")):
        for part in parts:
            weights[f"{ours}.{part}"] = factor * peer.pop(f"{theirs}.{part}")

    for i in range(network["mapping_layers"]):
        take(f"mapping.layers.{i}", f"mapping.fc{i}", 1 / SHRINK)
    if network["num_classes"]:  # their layer takes a vector with a single 1
        embedding, bias = peer.pop("mapping.embed.weight"), peer.pop("mapping.embed.bias")
        weights["mapping.embedding.weight"] = embedding.T / math.sqrt(len(CLASSES)) + bias
    weights["generator.constant"] = peer.pop("synthesis.b4.const").reshape(1, -1, 4, 4)
    for i in range(network["resolution"].bit_length() - 2):
        theirs, ours = f"synthesis.b{4 << i}", f"generator.blocks.{i}"
        for number, name in enumerate(("conv0", "conv1") if i else ("conv1",)):
            layer, style = f"{theirs}.{name}", f"{ours}.styles.{number}"
            scale *= SHRINK
            take(f"{style}.conv.affine", f"{layer}.affine")
            kernel, bias = peer.pop(f"{layer}.weight"), math.sqrt(2) * scale * peer.pop(f"{layer}.bias").flatten()
            strength = peer.pop(f"{layer}.noise_strength", torch.zeros(1)) * math.sqrt(2) * scale / NOISE_LR
            weights[f"{style}.conv.weight"], weights[f"{style}.bias"] = kernel.reshape(kernel.shape[-4:]), bias
            weights[f"{style}.noise_strength"] = strength.double().flatten().expand(len(bias))[:, None, None]
        take(f"{ours}.to_image.affine", f"{theirs}.torgb.affine")
        image, bias = peer.pop(f"{theirs}.torgb.weight"), peer.pop(f"{theirs}.torgb.bias").flatten()
        grey = torch.tensor(LUMINANCE if len(bias) == 3 else (1.0,), dtype=torch.float64)
        kernel = (grey @ image.reshape(len(bias), -1) / scale)[None, :, None, None]
        weights[f"{ours}.to_image.weight"], weights[f"{ours}.image_bias"] = kernel, grey @ bias
    weights["mapping.w_mean"] = peer.pop("mapping.w_avg", None)
    if weights["mapping.w_mean"] is None:
        weights["mapping.w_mean"] = mean_style(weights, network)
    weights["mapping.w_mean"] = weights["mapping.w_mean"].expand(max(1, network["num_classes"]), -1)
    return {name: x.float().contiguous() for name, x in weights.items()}


@torch.no_grad()
def mean_style(weights, network):
    """The mean of w [w_dim] over AVERAGED latents, of the unconditional mapping network among converted weights."""
    mapping = MappingNetwork(network["z_dim"], network["w_dim"], 0, network["mapping_layers"])
    names = [name for name, _ in mapping.named_parameters()]
    mapping.load_state_dict({name: weights[f"mapping.{name}"] for name in names}, strict=False)
    return mapping(torch.randn(AVERAGED, network["z_dim"], generator=random_stream("mean of w", 0))).mean(0)
