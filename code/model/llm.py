"""The language model: any Hugging Face causal LM, with LoRA (Hu et al., ICLR 2022) on its attention projections."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
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
# LLaMA's published sizes (Touvron et al., 2023, table 2), which Vicuna shares: by the beginning of a folder's name.
LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


@dataclass
class StopAtTurnEnd:
    """A stopping criterion for ``generate``: per sample, true once the assistant's turn has ended."""

    tokenizer: Tokenizer
    done: list[bool] = field(default_factory=list)

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """(B, generated so far) -> (B,) bool."""
        rows = ids.tolist()
        self.done = self.done or [False] * len(rows)
        self.done = [done or ends_turn(row, self.tokenizer) for done, row in zip(self.done, rows, strict=True)]
        return torch.tensor(self.done, device=ids.device)


def load_llm(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Reads a causal LM's folder (config.json with sharded or single .safetensors / .bin) straight into ``dtype``.

    Names and shapes are compared before a byte of weights is copied.

    Raises:
        CheckpointError: the folder is missing, incomplete, or another model's.
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
        # Vicuna folders disagree: 32000 rows, or 32001 with a padding token. The tensors decide.
        logger.info("%s: config.json says %d rows, the weights have %d", folder, config.vocab_size, rows)
        config.vocab_size = rows
    # Files of old hold the rotary frequencies, and some of a tied model its output layer: the embedding once more.
    ignore = ("rotary_emb.inv_freq", OUTPUT) if config.tie_word_embeddings else ("rotary_emb.inv_freq",)
    with torch.device("meta"):
        expected = shapes_of(AutoModelForCausalLM.from_config(config).state_dict())
    if config.tie_word_embeddings:
        expected.pop(OUTPUT, None)  # the same tensor as the embedding: files may carry it or not
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
    """The Hugging Face config of a language model whose files may be absent, for a plan, and a remark on its source.

    Returns:
        The config, None where the model's size is unknown; and the remark, None where all files are there.
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
    size = next((size for size in LLAMA_SIZES if folder.name.lower().startswith(f"{size}_")), None)
    if size is None:
        return None, f"{folder}: no config.json there, so the language model's size is unknown and not counted"
    return LlamaConfig(**LLAMA_SIZES[size]), f"{folder}: no config.json there; taken to be LLaMA-{size.upper()}"


def add_lora(llm: Any, settings: LoraSettings) -> Any:
    """Wraps the model in PEFT, whose tensor names the released deltas use.

    Raises:
        UserError: a target is no module of this model, or none that takes LoRA.
    """
    from peft import LoraConfig, get_peft_model

    modules = dict(llm.named_modules())
    linear = dict.fromkeys(name.rpartition(".")[2] for name, m in modules.items() if isinstance(m, nn.Linear))
    advice = f"its linear layers are called {', '.join(linear)}"
    if not settings.targets:
        raise UserError(f"llm.lora.targets []: names no module; {advice}")
    # PEFT itself ignores a misspelt target where another one is found.
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
        warnings.simplefilter("ignore", FutureWarning)  # PEFT still asks for a flag that transformers has renamed
        try:
            return get_peft_model(llm, config)
        except ValueError as error:  # the modules are there, but of a kind that PEFT has no adapter for
            targets = ", ".join(settings.targets)
            raise UserError(f"llm.lora.targets [{targets}]: LoRA can't stand on all of these; {advice}") from error


def merge_lora_weights(llm: Any) -> None:
    """Adds each adapter to the weights that it stands on: the same answers, sooner; it can't be trained any more.

    In float32 only. Half precision would round much of the small changes away, so there the adapters stay apart; as
    they do on an output layer whose weights are the embedding's, too.
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
    begun: Sequence[Sequence[int]] = (),
    **extra: Any,
) -> list[str]:
    """Continues B prompts given as embeddings.

    Args:
        embeds: (B, N, D_l), padded on the left.
        attention: (B, N) int64, 1 where a position counts.
        begun: the ids at each prompt's end with which its answer already begins; they come back as part of it.
        extra: passed on to ``generate`` (a streamer, say).

    Returns:
        B answers, without the end-of-turn mark.
    """
    sampling: dict[str, Any] = {"do_sample": settings.temperature > 0}
    if sampling["do_sample"]:
        sampling |= {"top_p": settings.top_p, "top_k": settings.top_k, "temperature": settings.temperature}
    ids = llm.generate(  # type: ignore[operator]
        inputs_embeds=embeds,
        attention_mask=attention,
        max_new_tokens=settings.max_new_tokens,
        stopping_criteria=[StopAtTurnEnd(tokenizer)],
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        bos_token_id=tokenizer.bos_id,
        **sampling,
        **extra,
    )
    answers = []
    for start, row in zip(begun or [()] * len(embeds), ids.tolist(), strict=True):
        end = row.index(tokenizer.eos_id) if tokenizer.eos_id in row else len(row)
        answers.append(answer_text([*start, *row[:end]], tokenizer))
    return answers
