"""A generator as two ONNX files, for runtimes other than PyTorch; needs the packages onnx and onnxscript.

    write_onnx(model, "predictions")        # predictions/AD_mapping.onnx, predictions/AD_generator.onnx

    mapping     z [N, z_dim], psi [], and of a conditional model labels as of `modules.LabelEmbedding` -> w [N, w_dim], truncated
    generator   w [N, w_dim], a map [N, 1, r, r] of noise for each style block, from coarse to fine -> image [N, 1, R, R]

All are float32 but for labels without values, which are int64. Images are about [-1, 1]; maps of zeros are no noise.
"""

import os
import warnings

import torch
from torch import nn

from analysis.models import style_vectors
from utils import atomic_path

EXAMPLES = 2  # images by which the networks are traced; files take any number


class Mapping(nn.Module):
    """A mapping network with truncation."""

    def __init__(self, mapping):
        super().__init__()
        self.mapping = mapping

    def forward(self, z, psi, labels=None):
        return self.mapping.truncate(self.mapping(z, labels), psi, labels)


class Synthesis(nn.Module):
    """A generator with the maps of noise as further inputs."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, w, *noise):
        return self.generator(w, noise)


@torch.no_grad()
def write_onnx(model, folder):
    """Write both files of a Model, named after it, into a folder; returns their paths."""
    z = torch.randn(EXAMPLES, model.mapping.z_dim, device=model.device)
    w, labels = style_vectors(model.mapping, z, model.labels[0])
    styles = [style for block in model.generator.blocks for style in block.styles]
    noise = {noise_name(style): style.fixed_noise.expand(EXAMPLES, -1, -1, -1) for style in styles}
    inputs = {"z": z, "psi": w.new_ones([])} | ({} if labels is None else {"labels": labels})
    parts = [("mapping", Mapping(model.mapping), inputs, "w"), ("generator", Synthesis(model.generator), {"w": w} | noise, "image")]
    paths = []
    for name, network, given, output in parts:
        paths.append(os.path.join(folder, f"{model.name}_{name}.onnx"))
        with atomic_path(paths[-1]) as temporary:
            export(network.eval(), given, output, temporary)
    return paths


def noise_name(style):
    """The name of the input for a StyleBlock's noise: noise_8_up is that of the first block at 8x8, noise_8 of the second."""
    return f"noise_{style.fixed_noise.shape[-1]}" + ("_up" if style.conv.up else "")


def export(network, inputs, output, path):
    """Write a module of inputs {name: tensor}, whose first axis, if they have one, is the number of images."""
    sizes = [{0: torch.export.Dim("N")} if x.ndim else {} for x in inputs.values()]
    shapes = (sizes[0], tuple(sizes[1:])) if isinstance(network, Synthesis) else tuple(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        # not strict, the tracer would take N as a constant, and leave tensors without numbers in the cache of ops.py
        program = torch.export.export(network, tuple(inputs.values()), dynamic_shapes=shapes, strict=True)
        torch.onnx.export(program, f=path, input_names=list(inputs), output_names=[output], external_data=False, verbose=False)
