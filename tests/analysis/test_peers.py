"""Weights of other code bases: the images of their networks, written out here from the papers, and those of the generator.pt."""

import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import refusal
from reference import TAPS

from analysis.models import load_model, main
from analysis.peers import LUMINANCE

RESOLUTION, CHANNELS = 32, {4: 6, 8: 6, 16: 4, 32: 2}  # channel_base 64, channel_max 6
Z_DIM, W_DIM, LAYERS = 5, 7, 3


def nvlabs_weights(colours=3, labels=0, seed=0):
    """{name: tensor} of a generator of stylegan2-ada-pytorch with random weights of the sizes that trained ones have."""
    rng, weights = torch.Generator().manual_seed(seed), {}

    def draw(name, *shape, std=1.0, mean=0.0):
        weights[name] = mean + std * torch.randn(shape, generator=rng)

    embedded = Z_DIM if labels else 0
    for i in range(LAYERS):
        draw(f"mapping.fc{i}.weight", W_DIM, W_DIM if i else Z_DIM + embedded, std=100)
        draw(f"mapping.fc{i}.bias", W_DIM, std=30)
    if labels:
        draw("mapping.embed.weight", embedded, labels)
        draw("mapping.embed.bias", embedded)
    draw("mapping.w_avg", W_DIM)
    draw("synthesis.b4.const", CHANNELS[4], 4, 4)
    for side, count in CHANNELS.items():
        block, before = f"synthesis.b{side}", CHANNELS.get(side // 2)
        for layer in ("conv0", "conv1") if before else ("conv1",):
            fan_in = before if layer == "conv0" else count
            draw(f"{block}.{layer}.weight", count, fan_in, 3, 3)
            draw(f"{block}.{layer}.bias", count, std=0.5)
            draw(f"{block}.{layer}.noise_strength", std=0.5)
            draw(f"{block}.{layer}.noise_const", side, side)
            draw(f"{block}.{layer}.affine.weight", fan_in, W_DIM)
            draw(f"{block}.{layer}.affine.bias", fan_in, std=0.3, mean=1)
            weights[f"{block}.{layer}.resample_filter"] = torch.tensor(TAPS).float()
        draw(f"{block}.torgb.weight", colours, count, 1, 1)
        draw(f"{block}.torgb.bias", colours)
        draw(f"{block}.torgb.affine.weight", count, W_DIM)
        draw(f"{block}.torgb.affine.bias", count, std=0.3, mean=1)
        weights[f"{block}.resample_filter"] = torch.tensor(TAPS).float()
    return weights


def rosinality_weights(nvlabs):
    """The same network under the names and shapes of stylegan2-pytorch; its filters include the factor 4 of upsampling."""
    weights = {}
    for name, x in nvlabs.items():
        if match := re.fullmatch(r"mapping\.fc(\d)\.(.+)", name):
            weights[f"style.{int(match[1]) + 1}.{match[2]}"] = x
        elif name == "synthesis.b4.const":
            weights["input.input"] = x[None]
        elif match := re.fullmatch(r"synthesis\.b(\d+)\.(conv0|conv1|torgb)\.(.+)", name):
            side, layer, end = int(match[1]), match[2], match[3]
            number = int(math.log2(side)) - 3  # -1 at 4x4
            if layer == "torgb":
                place = f"to_rgbs.{number}" if side > 4 else "to_rgb1"
            else:
                place = f"convs.{2 * number + (layer == 'conv1')}" if side > 4 else "conv1"
            if end == "noise_const":
                weights[f"noises.noise_{2 * number + (layer == 'conv1') + 1}"] = x[None, None]
            elif end == "resample_filter":
                weights |= {f"{place}.conv.blur.kernel": 4 * x} if layer == "conv0" else {}
            elif end == "weight":
                weights[f"{place}.conv.weight"] = x[None]
            elif end.startswith("affine"):
                weights[f"{place}.conv.{end.replace('affine', 'modulation')}"] = x
            elif layer == "torgb":
                weights[f"{place}.bias"] = x.reshape(1, -1, 1, 1)
            else:
                weights |= {f"{place}.noise.weight": x.reshape(1)} if end == "noise_strength" else {f"{place}.activate.bias": x}
        elif (match := re.fullmatch(r"synthesis\.b(\d+)\.resample_filter", name)) and int(match[1]) > 4:
            weights[f"to_rgbs.{int(math.log2(int(match[1]))) - 3}.upsample.kernel"] = 4 * x
    return weights


def zeros_between(x):
    """[N, C, H, W] -> [N, C, 2H, 2W]: each pixel, then a zero."""
    spaced = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spaced[..., ::2, ::2] = x
    return spaced


def filtered(x, before, after):
    """Four times the filter [1, 3, 3, 1], with so many zeros beyond the borders."""
    taps = 4 * torch.tensor(TAPS).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (before, after, before, after)), taps, groups=x.shape[1])


def normalised(x):
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def relu(x):
    return math.sqrt(2) * torch.where(x < 0, 0.2 * x, x)


def papers_images(weights, z, noises, label=None):
    """[N, colours, R, R] by Karras et al. 2019 (mapping network) and 2020 (figures 2c and 7b, eq. 1 and 3), scaled as NVlabs'."""
    p = {name: x.double() for name, x in weights.items()}
    x = normalised(z)
    if label is not None:
        one_hot = F.one_hot(torch.full([len(z)], label), 2).double()
        x = torch.cat([x, normalised(one_hot @ p["mapping.embed.weight"].T / math.sqrt(2) + p["mapping.embed.bias"])], 1)
    for i in range(LAYERS):  # at a hundredth of the learning rate
        weight, bias = p[f"mapping.fc{i}.weight"], p[f"mapping.fc{i}.bias"]
        x = relu(0.01 * (x @ weight.T) / math.sqrt(x.shape[1]) + 0.01 * bias)
    w, noises = x, iter(noises)

    def style(layer):
        return w @ p[f"{layer}.affine.weight"].T / math.sqrt(W_DIM) + p[f"{layer}.affine.bias"]

    def convolved(x, layer):
        kernels = p[f"{layer}.weight"] * style(layer)[:, None, :, None, None]  # eq. 1, [N, out, in, 3, 3]
        kernels = kernels / (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()  # eq. 3
        up = layer.endswith("conv0")
        x = zeros_between(x) if up else x
        samples = zip(x[:, None], kernels.flip(3, 4) if up else kernels)  # upsampling layers convolve, the others correlate
        x = torch.cat([F.conv2d(sample, kernel, padding=2 if up else 1) for sample, kernel in samples])
        x = filtered(x[..., :-1, :-1], 1, 1) if up else x  # 2H + 1 pixels, of which the filter leaves 2H
        return relu(x + p[f"{layer}.noise_strength"] * next(noises) + p[f"{layer}.bias"][:, None, None])

    x, images = p["synthesis.b4.const"].expand(len(z), -1, -1, -1), None
    for side in CHANNELS:
        for layer in ("conv0", "conv1") if side > 4 else ("conv1",):
            x = convolved(x, f"synthesis.b{side}.{layer}")
        layer = f"synthesis.b{side}.torgb"
        kernels = p[f"{layer}.weight"][:, :, 0, 0] * style(layer)[:, None] / math.sqrt(x.shape[1])
        here = torch.einsum("noc,nchw->nohw", kernels, x) + p[f"{layer}.bias"][:, None, None]
        images = here if images is None else filtered(zeros_between(images), 2, 1) + here
    return images


def save(weights, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(weights, path)
    return str(path)


def adopted(weights, tmp_path, *flags):
    """The Model, in float64, that the command makes of weights."""
    assert main([save(weights, tmp_path), str(tmp_path / "run"), *flags]) == 0
    model = load_model(str(tmp_path / "run"), "cpu")
    model.mapping.double(), model.generator.double()
    return model


@pytest.mark.parametrize("colours, labels", [(1, 0), (3, 0), (1, 2)])
def test_images_are_those_of_nvlabs_network(tmp_path, colours, labels):
    weights = nvlabs_weights(colours, labels)
    model = adopted(weights, tmp_path)
    z = torch.randn(3, Z_DIM, dtype=torch.float64)
    noises = [torch.randn(3, 1, side, side, dtype=torch.float64) for side in (4, 8, 8, 16, 16, 32, 32)]
    for label in model.labels:
        w = model.mapping(z, None if label is None else torch.full([3], label))
        theirs = papers_images(weights, z, noises, label)
        grey = torch.einsum("c,nchw->nhw", torch.tensor(LUMINANCE if colours == 3 else [1.0]).double(), theirs)[:, None]
        assert theirs.std() > 0.5  # of something
        torch.testing.assert_close(model.generator(w, noises), grey, rtol=3e-6, atol=3e-6)  # float32 weights
    torch.testing.assert_close(model.mapping.w_mean.float(), weights["mapping.w_avg"].expand(max(1, labels), -1))
    assert model.is_conditional == bool(labels) and model.resolution == RESOLUTION


def test_rosinalitys_names_give_the_same_generator(tmp_path):
    nvlabs = nvlabs_weights()
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    checkpoint = {"g_ema": rosinality_weights(nvlabs), "latent_avg": nvlabs["mapping.w_avg"]}
    ours, theirs = (adopted(weights, folder) for weights, folder in zip((nvlabs, checkpoint), folders))
    for part in ("mapping", "generator"):
        for (name, x), (_, y) in zip(getattr(ours, part).state_dict().items(), getattr(theirs, part).state_dict().items()):
            assert torch.equal(x, y), name


def test_without_a_mean_of_w_it_is_measured(tmp_path):
    model = adopted(rosinality_weights(nvlabs_weights()), tmp_path, "--classes", "AD")
    w = model.mapping(torch.randn(20_000, Z_DIM, dtype=torch.float64))
    assert ((model.mapping.w_mean[0] - w.mean(0)).abs() < 6 * w.std(0) * math.sqrt(1 / 10_000 + 1 / 20_000)).all()
    assert model.trained_on == ["AD"]


ALIAS_FREE = {"synthesis.input.freqs": torch.zeros(4, 2), "synthesis.L0_36_512.weight": torch.zeros(4, 4, 3, 3)}


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda p: p.update({"synthesis.b8.resample_filter": torch.ones(4, 4) / 16}), r"another filter than \[1, 3, 3, 1\]"),
        (lambda p: p.pop("synthesis.b8.torgb.weight"), "it lacks synthesis.b8.torgb.weight"),
        (lambda p: p.update({"synthesis.b8.skip.weight": torch.ones(6, 6, 1, 1)}), "no place for synthesis.b8.skip.weight"),
        (lambda p: p.update(nvlabs_weights(labels=10)), r"its labels are embedded by \[5, 10\], not by \[5, 2\]"),
        (lambda p: p.update(nvlabs_weights(colours=4)), "one or three channels"),
        (lambda p: p.update({"synthesis.b32.conv1.weight": torch.ones(3, 3, 3, 3)}), r"its channels \[6, 6, 4, 3\] are not"),
        (lambda p: p.update({"synthesis.b4.conv1.bias": torch.ones(7)}), "its weights do not fit its network"),
        (lambda p: p.update({"mapping.w_avg": torch.full([W_DIM], math.nan)}), "its weights are not finite"),
        (lambda p: [p.pop(name) for name in list(p) if ".b32." in name], "resolution 16"),
        (lambda p: (p.clear(), p.update(ALIAS_FREE)), "StyleGAN3's alias-free layers"),
        (lambda p: p.clear(), "no StyleGAN2 generator; save its weights alone"),
    ],
)
def test_what_this_network_cannot_represent_is_refused(tmp_path, change, expected):
    weights = nvlabs_weights()
    change(weights)
    line = refusal(main, save(weights, tmp_path), tmp_path / "run")
    assert re.search(expected, line) and "weights.pt: " in line and not (tmp_path / "run").exists()


def test_a_pickle_with_code_is_not_run(tmp_path):
    path, proof = tmp_path / "network.pkl", tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return open, (str(proof), "w")

    path.write_bytes(pickle.dumps({"G_ema": Code()}))
    line = refusal(main, path, tmp_path / "run")
    assert "code in it is not run: save its weights alone" in line and not proof.exists()
