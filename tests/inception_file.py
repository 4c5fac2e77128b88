"""Small TorchScript files of the interface of inception-2015-12-05.pt, for the tests of FID."""

import warnings

import torch


class Pooled(torch.nn.Module):
    """Features [N, 48]: the mean of each of 16 fields of a slice and channel, 0 to 1."""

    def forward(self, img, return_features: bool = False):
        features = torch.nn.functional.adaptive_avg_pool2d(img, 4).flatten(1) / 255
        return features if return_features else features[:, :8]


def save_network(network, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls TorchScript deprecated
        torch.jit.script(network).save(str(path))
    return str(path)
