"""The language model: any Hugging Face causal LM, with LoRA (Hu et al., ICLR 2022) on its attention projections."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomalygpt.config.settings import GenerationSettings, LoraSettings
from anomalygpt.errors import UserError
from anomalygpt.model.chat import answer_text, ends_turn
from anomalygpt.model.checkpoint import CheckpointError, check_names, folder_shapes, shapes_of
from anomalygpt.model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
# LLaMA's published sizes (Touvron et al., 2023, table 2), which Vicuna shares, by the prefix of a folder's name.
LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


def load_llm(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Reads a causal LM's folder (config.json with sharded or single .safetensors / .bin) directly into ``dtype``.

    Names and shapes are compared before any weights are copied.

    Raises:
        CheckpointError: the folder is missing, incomplete, or of another model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json there; expected a Hugging Face causal LM's folder")
    config = _read_config(folder)
    found = folder_shapes(folder)
    rows = found.get(EMBEDDING, (config.vocab_size,))[0]
    if rows != config.vocab_size:
        # Some Vicuna folders have 32000 rows, some 32001 with a padding token: the weights decide, not config.json.
        logger.info("%s: vocab_size %d in config.json, %d in the weights", folder, config.vocab_size, rows)
        config.vocab_size = rows
    with torch.device("meta"):
        expected = shapes_of(AutoModelForCausalLM.from_config(config).state_dict())
    ignore = ["rotary_emb.inv_freq"]  # in older files
    if config.tie_word_embeddings:  # the output layer is the embedding: a file may hold it again or not
        expected.pop(OUTPUT, None)
        ignore.append(OUTPUT)
    check_names(expected, found, folder, ignore=ignore)
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, device_map={"": device}, local_files_only=True
    )


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise CheckpointError(f"{folder / 'config.json'}: not a Hugging Face model config ({reason})") from error


def planned_config(folder: Path) -> tuple[Any, str | None]:
    """The Hugging Face config of a language model with possibly absent files, for a memory estimate.

    Returns:
        The config, None where the model's size is unknown; and a note on its source, None where all files exist.
    """
    from transformers import LlamaConfig

    if (folder / "config.json").is_file():
        config = None
        try:
            config = _read_config(folder)
            config.vocab_size = folder_shapes(folder).get(EMBEDDING, (config.vocab_size,))[0]
        except CheckpointError as error:
            return config, f"{error}: sizes are config.json's" if config else str(error)
        return config, None
    size = folder.name.lower().partition("_")[0]
    if size not in LLAMA_SIZES or "_" not in folder.name:
        return None, f"{folder}: no config.json there, so the language model's size is unknown and not counted"
    return LlamaConfig(**LLAMA_SIZES[size]), f"{folder}: no config.json there; taken to be LLaMA-{size.upper()}"


def add_lora(llm: Any, settings: LoraSettings) -> Any:
    """Wraps the model in PEFT, whose tensor names the released deltas use.

    Raises:
        UserError: a target is no module of this model, or no linear layer.
    """
    from peft import LoraConfig, get_peft_model

    modules = dict(llm.named_modules())
    linear = dict.fromkeys(name.rpartition(".")[2] for name, m in modules.items() if isinstance(m, nn.Linear))
    advice = f"its linear layers are called {', '.join(linear)}"
    if not settings.targets:
        raise UserError(f"llm.lora.targets []: names no module; {advice}")
    # PEFT ignores a misspelt target where another one is found.
    absent = [target for target in settings.targets if not any(f".{name}".endswith(f".{target}") for name in modules)]
    if absent:
        raise UserError(f"llm.lora.targets [{', '.join(absent)}]: no such modules in this language model; {advice}")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT still uses a flag that transformers has renamed
        try:
            return get_peft_model(llm, config)
        except ValueError as error:  # the modules exist, but PEFT has no adapter for their class
            targets = ", ".join(settings.targets)
            raise UserError(f"llm.lora.targets [{targets}]: LoRA can't adapt all of these; {advice}") from error


def merge_lora_weights(llm: Any) -> None:
    """Merges each adapter into its base weights: the same answers, faster; LoRA can't be trained afterwards.

    Adapters stay separate in half precision, which would round much of their small changes away, and where one is on an
    output layer that shares its weights with the embedding.
    """
    shared = llm.config.tie_word_embeddings and hasattr(llm.get_output_embeddings(), "lora_A")
    if llm.dtype == torch.float32 and not shared:
        llm.merge_adapter()


@torch.inference_mode()
def generate(
    llm: nn.Module,
    embeds: Tensor,
    attention: Tensor,
    tokenizer: Tokenizer,
    settings: GenerationSettings,
    **extra: Any,
) -> list[str]:
    """Continues B prompts given as embeddings.

    Args:
        embeds: (B, N, D_l), padded on the left.
        attention: (B, N) int64, 1 where a position counts.
        extra: passed to the model's ``generate`` (a streamer, for example).

    Returns:
        B answers, without the end-of-turn mark.
    """
    done = [False] * len(embeds)

    def turn_ended(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for number, row in enumerate(ids.tolist()):
            done[number] = done[number] or ends_turn(row, tokenizer)
        return torch.tensor(done, device=ids.device)

    sampling: dict[str, Any] = {"do_sample": settings.temperature > 0}
    if sampling["do_sample"]:
        sampling |= {"top_p": settings.top_p, "top_k": settings.top_k, "temperature": settings.temperature}
    ids = llm.generate(  # type: ignore[operator]
        inputs_embeds=embeds,
        attention_mask=attention,
        max_new_tokens=settings.max_new_tokens,
        stopping_criteria=[turn_ended],
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        bos_token_id=tokenizer.bos_id,
        **sampling,
        **extra,
    )
    answers = []
    for row in ids.tolist():
        end = row.index(tokenizer.eos_id) if tokenizer.eos_id in row else len(row)
        answers.append(answer_text(row[:end], tokenizer))
    return answers
