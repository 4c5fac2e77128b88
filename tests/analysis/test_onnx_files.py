"""Generators written as ONNX, run by onnxruntime, against PyTorch."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import NETWORK, refusal, styles

import ops
import predict
from analysis.models import Model, draw_z
from analysis.onnx_files import write_onnx
from modules import build_generator

PACKAGES = "onnx", "onnxscript", "onnxruntime"
needs_packages = pytest.mark.skipif(not all(map(importlib.util.find_spec, PACKAGES)), reason=f"needs {', '.join(PACKAGES)}")


def run(path, **inputs):
    """The one output of a file for these inputs; it must take them and no others."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == set(inputs)
    (found,) = session.run(None, {name: np.asarray(x) for name, x in inputs.items()})
    return found


@needs_packages
@pytest.mark.slow
def test_files_compute_what_pytorch_does(tmp_path):
    network = NETWORK | {"resolution": 16, "num_classes": 2, "values": ["position", "age"], "mapping_layers": 2}
    networks = build_generator(network).eval().requires_grad_(False)
    mapping, generator = networks["mapping"], networks["generator"]
    for x, value in ((mapping.embedding.mean, 70.0), (mapping.embedding.std, 8.0), (mapping.examples, 75.0), (mapping.w_mean, 0.5)):
        x.fill_(value)
    model = Model("some", mapping, generator, ["AD", "NC"], [0, 1], "", values=("position", "age"))
    ops._binomial_kernel.cache_clear()  # whatever other tests have drawn, and drawing afterwards must work, too
    paths = write_onnx(model, str(tmp_path))
    assert paths == [str(tmp_path / f"some_{name}.onnx") for name in ("mapping", "generator")]
    names = ["noise_4", "noise_8_up", "noise_8", "noise_16_up", "noise_16"]
    for count, psi in ((3, 0.7), (1, 1.2)):
        z, labels = torch.randn(count, 16), torch.tensor([[1, 85, 66], [0, torch.nan, 70], [1, 60, torch.nan]])[:count]
        plain = mapping(z, labels)
        w = run(paths[0], z=z, psi=np.float32(psi), labels=labels)
        np.testing.assert_allclose(w, mapping.truncate(plain, psi, labels), atol=1e-5)
        assert np.abs(w - plain.numpy()).max() > 0.01
        noise = [torch.randn(count, 1, side, side) for side in (4, 8, 8, 16, 16)]
        image = run(paths[1], w=w, **dict(zip(names, noise)))
        np.testing.assert_allclose(image, generator(torch.from_numpy(w), noise), atol=1e-4)
        assert np.abs(image - generator(torch.from_numpy(w), "none").numpy()).max() > 0.01


@needs_packages
@pytest.mark.slow
def test_predict_writes_the_files(models, model, tmp_path, capsys):
    flags = ["--model_dir", models, "--classes", "AD", "--num_images", "1", "--device", "cpu", "--output_dir", str(tmp_path)]
    assert predict.main([*flags, "--onnx", "True"]) == 0
    assert str(tmp_path / "AD_generator.onnx") in capsys.readouterr().out.split()
    w = run(tmp_path / "AD_mapping.onnx", z=draw_z(2, 256, 0), psi=np.float32(1))
    np.testing.assert_allclose(w, styles(model, 2), atol=1e-5)


def test_missing_packages_are_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    line = refusal(predict.main, "--onnx", "True", "--model_dir", tmp_path)
    assert line == "--onnx True needs onnxscript: pip install onnxscript"
