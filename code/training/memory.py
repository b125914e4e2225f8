"""How much memory a run will need, estimated from shapes; docs/training.md has the formulas in words."""

from dataclasses import dataclass
from typing import Any

from anomalygpt.config.schema import ExperimentConfig, TrainingConfig
from anomalygpt.model.prompt_learner import MAP_SIZE

GIB = 2**30
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
CARD = 24 * GIB
CUDA_BYTES = GIB  # the driver's context, cuBLAS' and NCCL's own memory
FRAGMENTED = 0.05  # of what is allocated: the allocator's loss
PROCESS_BYTES = round(1.0 * GIB)  # Python with PyTorch, DeepSpeed, transformers and the data set's photos, measured
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters: gathered at a time under ZeRO 3
QUARTER_TURNS = 4
ENCODER_COPIES = 12  # of a block's tokens at a time: MLP and attention
FRAME_TOKENS = 40  # of an image's frame and the 18 prompts, rounded up
MAP_COPIES = 8  # of the probabilities at full size that focal and dice keep for their gradients


@dataclass(frozen=True)
class Sizes:
    """What the estimate needs to know of a model.

    Attributes:
        frozen, trained: numbers of parameters.
        taps, patches, tap_width: of the encoder.
        llm: Hugging Face's config of the language model; None where there is none, or its size is unknown.
    """

    frozen: int
    trained: int
    taps: int
    patches: int
    tap_width: int
    llm: Any = None


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for, of one GPU (or, on a CPU, of one process) and of the host for each process."""

    device: dict[str, int]
    host: dict[str, int]

    @property
    def device_total(self) -> int:
        """All of the device's."""
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        """All of the host's, for one process."""
        return sum(self.host.values())


def estimate(config: ExperimentConfig, sizes: Sizes, processes: int, *, on_cpu: bool = False) -> Estimate:
    """The memory of one of the run's processes.

    Args:
        on_cpu: there is no GPU: all lies in the host's memory.
    """
    settings = config.training
    width = BYTES[settings.precision]
    device = {
        "weights": weight_bytes(config, sizes, processes, on_cpu=on_cpu),
        "gradients": gradient_bytes(settings, sizes.trained, processes),
    }
    host = {"libraries": PROCESS_BYTES}
    keeper = host if settings.offloads else device
    keeper["optimiser"] = optimizer_bytes(settings, sizes.trained, processes)
    device["activations"] = activation_bytes(config, sizes, width)
    if on_cpu:
        return Estimate({}, host | device)
    device["CUDA and fragments"] = CUDA_BYTES + round(FRAGMENTED * sum(device.values()))
    return Estimate(device, host)


def weight_bytes(config: ExperimentConfig, sizes: Sizes, processes: int, *, on_cpu: bool) -> int:
    """All parameters, once: in the engine's half precision, or in fp32 with the frozen ones as they were loaded."""
    settings = config.training
    width = BYTES[settings.precision]
    loaded = ("fp32" if on_cpu else "fp16") if config.precision == "auto" else config.precision
    frozen = width if settings.precision != "fp32" else BYTES[loaded]
    whole = sizes.frozen * frozen + sizes.trained * width
    if settings.zero_stage < 3:
        return whole
    live = min(1.0, LIVE_PARAMETERS / (sizes.frozen + sizes.trained))
    return whole // processes + round(live * whole)


def gradient_bytes(settings: TrainingConfig, trained: int, processes: int) -> int:
    """Gradients in the engine's precision, from stage 1 on with DeepSpeed's buffer for exchanging them."""
    width = BYTES[settings.precision]
    if settings.zero_stage == 0:
        return trained * width
    divided = settings.zero_stage >= 2
    kept = 0 if divided and settings.offloads else trained * width // (processes if divided else 1)
    return kept + trained * width


def optimizer_bytes(settings: TrainingConfig, trained: int, processes: int) -> int:
    """AdamW: two moments, the fp32 copy of the weights, and during a step a gradient and a temporary in fp32.

    Stage 0 in fp32 needs no copies of weights and gradients; from stage 1 on each process keeps its share.
    """
    if settings.zero_stage == 0:
        numbers = 3 if settings.precision == "fp32" else 5
        return 4 * numbers * trained
    return 4 * 5 * trained // processes


def activation_bytes(config: ExperimentConfig, sizes: Sizes, width: int) -> int:
    """What the forward pass keeps for the backward pass, at its longest text.

    Args:
        width: bytes of a number in the engine's precision.
    """
    settings = config.training
    photos = 2 * settings.micro_batch_size
    total = map_bytes(sizes, photos)
    views = QUARTER_TURNS if settings.rotated_references else 1
    seen = photos + settings.micro_batch_size * views * settings.answers
    total += seen * sizes.patches * sizes.tap_width * (sizes.taps + ENCODER_COPIES) * width
    if sizes.llm is not None and config.llm is not None:
        total += language_bytes(sizes.llm, photos, config.llm.max_target_tokens, width, settings.gradient_checkpointing)
    return total


def map_bytes(sizes: Sizes, photos: int) -> int:
    """The image decoder's tokens and its probabilities at full size, in fp32."""
    tokens = sizes.patches * sizes.tap_width * 3
    pixels = 2 * MAP_SIZE**2 * MAP_COPIES
    return 4 * photos * sizes.taps * (tokens + pixels)


def language_bytes(llm: Any, photos: int, tokens: int, width: int, checkpointing: bool) -> int:
    """The language model's activations and logits for ``photos`` conversations of ``tokens`` tokens.

    A layer keeps for each token: 16 h bytes of its two norms in fp32; q, k, v, the attention's output and the LoRA
    inputs of four projections (6 h + 2 h_kv numbers, and 4 h bytes of dropout masks); gate, its activation and up (3 f
    numbers). The attention matrix itself is never kept. With checkpointing every layer keeps its input alone, and one
    layer at a time all of the above. Logits take four numbers in the engine's precision and three in fp32 each.
    """
    h, f, layers = llm.hidden_size, llm.intermediate_size, llm.num_hidden_layers
    heads = llm.num_attention_heads
    h_kv = h * (getattr(llm, "num_key_value_heads", None) or heads) // heads
    layer = 20 * h + width * (6 * h + 2 * h_kv + 3 * f)
    kept = layers * width * h + layer if checkpointing else layers * layer
    positions = photos * (tokens + FRAME_TOKENS)
    return positions * kept + photos * tokens * llm.vocab_size * (4 * width + 12)
