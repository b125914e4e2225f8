"""The language model: any Hugging Face causal LM, with LoRA (Hu et al., ICLR 2022) on its attention projections."""

import logging
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomalygpt.config.settings import LoraSettings
from anomalygpt.errors import UserError, reading, reading_warning
from anomalygpt.model import checkpoint
from anomalygpt.model.checkpoint import CheckpointError, Shape, check_names, read_tensors, shapes_of, weight_files
from anomalygpt.model.merged_llama import MergedLlama

logger = logging.getLogger(__name__)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is installed, and it warns then

GIB = 2**30
PRECISIONS = ("full", "8bit", "4bit")
WORKSPACE = 10  # part of fp16 weights that is needed beside them: LoRA and prompt learner in fp32, keys and values
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a number, its share of the scales included
OUTPUT = "lm_head.weight"
# LLaMA's published sizes (Touvron et al., 2023, table 2), which Vicuna shares, by the prefix of a folder's name.
LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "7b": {},  # the default of transformers
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


def load_llm(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    precision: str = "full",
    *,
    trains: bool = False,
    merged: LoraSettings | None = None,
) -> Any:
    """Reads a causal LM's folder in Hugging Face's layout directly into ``dtype``, or the precision of the config.

    A folder called ``…_v0`` that does not hold Vicuna version 0 is loaded with a warning. ``trains``: gradients will go
    through it. ``merged``: with this LoRA, :class:`MergedLlama` may answer where a GPU holds it unquantized. Raises
    :class:`CheckpointError`: it is missing, incomplete, of another model, or an unapplied delta.
    """
    from transformers import AutoModelForCausalLM

    config, found = _read_config(folder)
    recognised = checkpoint.probe(folder)
    advice = "python prepare_vicuna.py makes Vicuna version 0 (pretrained_ckpt/README.md)"
    if recognised.kind == "vicuna_delta":
        raise CheckpointError(f"{folder}: this is {recognised.what}; {advice}")
    if folder.name in ("7b_v0", "13b_v0") and recognised.kind != "vicuna_v0":
        reading_warning(f"{folder}: expected Vicuna version 0, found {recognised.what}; answers may be poor. {advice}")
    with torch.device("meta"):
        planned = AutoModelForCausalLM.from_config(config)
    expected = shapes_of(planned.state_dict())
    ignore = r".*rotary_emb\.inv_freq$"  # in older files
    if config.tie_word_embeddings:  # the output layer is the embedding: a file may hold it again or not
        expected.pop(OUTPUT, None)
        ignore += f"|{re.escape(OUTPUT)}$"
    check_names(expected, found, folder, ignore=ignore)
    placed = placement(planned, dtype, device, precision)
    if merged and device.type == "cuda" and not placed["quantization_config"]:
        return MergedLlama(folder, merged, dtype, device)
    llm = AutoModelForCausalLM.from_pretrained(folder, config=config, local_files_only=True, **placed)
    for module in llm.modules() if trains and precision == "4bit" else ():
        # On a CPU, bitsandbytes packs the weights anew when it evaluates, and gives wrong gradients from then on.
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return llm


def placement(planned: nn.Module, dtype: torch.dtype, device: torch.device, precision: str) -> dict[str, Any]:
    """What ``from_pretrained`` takes for a precision of ``llm.precision``; ``planned`` is the model on ``meta``."""
    from transformers import BitsAndBytesConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if precision in ("auto", "bf16"):  # bf16 is a CPU's, for the decoder of merged_llama.py
        precision = "full"
        if device.type == "cuda":
            torch.cuda.empty_cache()
            precision = fitting_precision(planned, dtype, torch.cuda.mem_get_info(device)[0])
    if precision != "full" and not find_spec("bitsandbytes"):
        raise UserError(f"llm.precision {precision}: needs bitsandbytes: pip install 'bitsandbytes>=0.50'")
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    options: dict[str, Any] = {"8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True, **nf4}}
    quantization = BitsAndBytesConfig(**options[precision]) if precision in options else None
    return {"dtype": dtype, "device_map": {"": device}, "quantization_config": quantization}


def weight_bytes(llm: nn.Module, precision: str, width: int) -> int:
    """Bytes of a language model's parameters but LoRA's, ``width`` of each that is not quantized (docs/training.md)."""
    own = [module for name, module in llm.named_modules() if "lora_" not in name]
    total = sum({id(p): p.numel() for module in own for p in module.parameters(recurse=False)}.values())
    head = llm.get_output_embeddings()  # type: ignore[operator]
    layers = [module for module in own if isinstance(module, nn.Linear) and module is not head]
    linear = sum(layer.weight.numel() for layer in layers)
    small = {"8bit": linear + 4 * sum(layer.out_features for layer in layers), "4bit": round(linear * NF4_BYTES)}
    return width * (total - linear) + small.get(precision, width * linear)


def fitting_precision(llm: nn.Module, dtype: torch.dtype, free: int) -> str:
    """The first of ``full``, ``8bit`` and ``4bit`` that fits so many free bytes."""
    sizes = {each: weight_bytes(llm, each, dtype.itemsize) for each in PRECISIONS}
    left = free - (sizes["full"] // WORKSPACE if find_spec("bitsandbytes") else 0)
    if sizes["full"] <= left:
        return "full"
    lack = f"{free / GIB:.1f} GiB of the GPU's memory are free, and the language model takes {sizes['full'] / GIB:.1f}"
    precision = "8bit" if sizes["8bit"] <= left else "4bit"
    logger.warning("%s: in %s it is %.1f (llm.precision)", lack, precision, sizes[precision] / GIB)
    return precision


def _read_config(folder: Path) -> tuple[Any, dict[str, Shape]]:
    """A language model's config, and the names and shapes of its weights."""
    from transformers import AutoConfig

    with reading(folder / "config.json", "a Hugging Face model config", CheckpointError):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    shapes = {name: shape for file in weight_files(folder) for name, shape in shapes_of(read_tensors(file)).items()}
    # Some Vicuna folders have 32000 rows, some 32001 with a padding token: the weights decide, not config.json.
    config.vocab_size = shapes.get("model.embed_tokens.weight", (config.vocab_size,))[0]
    return config, shapes


def planned_config(folder: Path) -> tuple[Any, str | None]:
    """A language model's config, None where its size is unknown, and a note where files are absent."""
    from transformers import LlamaConfig

    if (folder / "config.json").is_file():
        try:
            return _read_config(folder)[0], None
        except CheckpointError as error:
            return None, str(error)
    size = folder.name.lower().partition("_")[0]
    if size not in LLAMA_SIZES or "_" not in folder.name:
        return None, f"{folder}: no config.json there, so the language model's size is unknown and not counted"
    return LlamaConfig(**LLAMA_SIZES[size]), f"{folder}: no config.json there; taken to be LLaMA-{size.upper()}"


def add_lora(llm: Any, settings: LoraSettings) -> Any:
    """Wraps the model in PEFT, by the released tensor names. Raises :class:`UserError`: a target is no linear layer."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    kinds = nn.Linear, Conv1D
    linear = dict.fromkeys(name.rpartition(".")[2] for name, m in llm.named_modules() if isinstance(m, kinds))
    # PEFT ignores a misspelt target where another one is found.
    wrong = [target for target in settings.targets if target.rpartition(".")[2] not in linear]
    if wrong or not settings.targets:
        which = f"expected linear layers of this language model, which are called {', '.join(linear)}"
        raise UserError(f"llm.lora.targets [{', '.join(wrong)}]: {which}")
    scale: dict[str, Any] = {"r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    config = LoraConfig(**scale, target_modules=list(settings.targets), task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT still uses a flag that transformers has renamed
        return get_peft_model(llm, config)
