"""The converters: to an ONNX export and back."""

from pathlib import Path

import pytest
import torch

from anomalygpt.weights.fetch import dinov2_from_onnx


def export_like_the_wheel(state: dict[str, torch.Tensor], file: Path) -> None:
    """Writes an ONNX file named as the carried one is: nameless transposed linears, positions apart."""
    import onnx
    from onnx import helper, numpy_helper

    tensors, number = {}, 1000
    for name, value in state.items():
        if name.endswith(("attn.qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight")):
            number += 3
            tensors[f"onnx::MatMul_{number}"] = value.T
        elif name == "pos_embed":
            tensors["onnx::Reshape_999"] = value[:, 1:]
        else:
            tensors[f"model.{name}"] = value
    initializers = [numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in tensors.items()]
    # The order in the file must not matter, only the numbers.
    graph = helper.make_graph([], "export", [], [], initializer=initializers[::-1])
    onnx.save(helper.make_model(graph), str(file))


@pytest.fixture(scope="module")
def random_dinov2() -> dict[str, torch.Tensor]:
    """The state dict of a DINOv2 ViT-S/14 with random weights, class position equal to the class token."""
    import timm

    state = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
    state["pos_embed"][:, :1] = state["cls_token"]
    return state


def test_dinov2_comes_back_bit_by_bit(random_dinov2, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    export_like_the_wheel(random_dinov2, tmp_path / "export.onnx")
    dinov2_from_onnx(tmp_path / "export.onnx", tmp_path)
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == random_dinov2.keys()
    assert all(torch.equal(converted[name], value) for name, value in random_dinov2.items())
