"""The converters: the way into an ONNX export and back, and the real weights when they are there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anomalygpt.config.load import PRETRAINED, resolve
from anomalygpt.weights import convert
from anomalygpt.weights.fetch import WeightsUnavailable, ensure


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
def random_dinov2() -> Iterator[dict[str, torch.Tensor]]:
    """The state dict of a DINOv2 ViT-S/14 with random weights, class position equal to the class token."""
    import timm

    state = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
    state["pos_embed"][:, :1] = state["cls_token"]
    yield state


def test_dinov2_comes_back_from_an_onnx_export_bit_by_bit(random_dinov2, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    export_like_the_wheel(random_dinov2, tmp_path / "export.onnx")
    convert.dinov2_from_onnx(tmp_path / "export.onnx", tmp_path)
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == random_dinov2.keys()
    assert all(torch.equal(converted[name], value) for name, value in random_dinov2.items())


def test_export_of_another_model_is_refused(random_dinov2, tmp_path: Path) -> None:
    broken = {name: value for name, value in random_dinov2.items() if name != "pos_embed"}
    export_like_the_wheel(broken, tmp_path / "export.onnx")
    with pytest.raises(ValueError, match="no single table of patch positions"):
        convert.dinov2_from_onnx(tmp_path / "export.onnx", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def present(name: str) -> Path:
    try:
        return ensure(name, resolve(PRETRAINED), offline=True)
    except WeightsUnavailable:
        pytest.skip(f"{name} is not in {PRETRAINED}/; `make weights` fetches it")


@pytest.mark.weights
def test_real_dinov2_loads_strictly_and_sees_a_part_where_it_is() -> None:
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518, dynamic_img_size=True).eval()
    model.load_state_dict(load_file(present("dinov2_vits14")), strict=True)
    photo = torch.zeros(1, 3, 224, 224)
    photo[..., 112:168, 56:112] = 2.0
    with torch.inference_mode():
        tokens = model.forward_features(photo)[:, 1:]
    # (1, 256, 384) -> (16, 16): the patches of the square are unlike the photo's corner.
    unlike = 1 - torch.cosine_similarity(tokens[0], tokens[0, 0], dim=-1).reshape(16, 16)
    assert unlike[9:11, 5:7].mean() > 2 * unlike[:4].mean()


@pytest.mark.weights
def test_real_smollm2_knows_the_capital_of_france() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = present("smollm2_135m_instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in answer
    assert "<|im_start|>user" in tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
