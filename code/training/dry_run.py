"""What a run would do and need, without training: ``train.py --dry-run``. docs/training.md has the memory formulas."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.build import META, build_model, local_llm, missing_weights, trainable_parts
from anomalygpt.model.checkpoint import part_of
from anomalygpt.model.llm import GIB, PRECISIONS, planned_config, weight_bytes
from anomalygpt.model.prompt_learner import MAP_SIZE
from anomalygpt.training.batches import build_data
from anomalygpt.training.engine import accumulation_steps, total_steps, warmup_steps

Sizes = dict[str, int]  # bytes by use
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "auto": 2}  # on a GPU
CARD = 24  # GiB, of the card that the plan is compared with
CUDA_BYTES = GIB  # the driver's context, cuBLAS' and NCCL's buffers
FRAGMENTED = 0.05  # of what is allocated: the allocator's loss
PROCESS_BYTES = GIB  # Python with PyTorch, DeepSpeed, transformers and the data set's photos, measured
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters: gathered at a time under ZeRO 3
ENCODER_COPIES = 12  # of a block's tokens at a time: MLP and attention
FRAME_TOKENS = 40  # the text around the image and the 18 prompts, rounded up
MAP_COPIES = 8  # of the probabilities at full size that focal and dice loss keep for their gradients


def describe(config: ExperimentConfig, processes: int) -> list[str]:
    """The plan of a run as lines of text. Raises :class:`UserError` where it can't start as its settings say."""
    accumulation = accumulation_steps(config.training, processes)
    model, trained = planned_model(config)
    data, pairs, absent = _data(config)
    lines = ["parameters", *parameter_table(model, trained), "", "data", *data]
    lines += ["", "steps", *_steps(config, pairs, accumulation, processes)]
    lines += ["", "memory, estimated (docs/training.md says how)", *_memory(config, model, processes)]
    absent += [f"{path}: not there yet" for path in missing_weights(config, all_absent=True)]
    if config.llm and (assumed := planned_config(local_llm(config.llm.weights))[1]):
        absent.append(assumed)
    return lines + (["", "not known here", *(f"  {line}" for line in absent)] if absent else [])


def planned_model(config: ExperimentConfig) -> tuple[AnomalyGPT, dict[str, list[nn.Parameter]]]:
    """The run's model on the meta device, and its trained parameters by part."""
    model = build_model(config, META, with_llm=config.training.answers)
    if config.llm and config.training.answers and not model.has_llm:
        raise UserError(f"{planned_config(local_llm(config.llm.weights))[1]}: nothing can be planned without it")
    return model, trainable_parts(model, config.training.trainable)


def parameter_table(model: nn.Module, trained: Mapping[str, Sequence[nn.Parameter]]) -> list[str]:
    """The numbers of parameters as lines of text: ``trained`` ones by part, frozen ones by module, and both sums."""
    lines = [_row(f"{part}, trained", _count(parameters)) for part, parameters in trained.items()]
    for name, child in model.named_children():
        if frozen := _count(p for p in child.parameters() if not p.requires_grad):
            lines.append(_row("language model, frozen" if name == "llama_model" else f"{name}, frozen", frozen))
    for kind, learns in (("trained", True), ("frozen", False)):
        lines.append(_row(f"all {kind}", _count(p for p in model.parameters() if p.requires_grad is learns)))
    return lines


def _data(config: ExperimentConfig) -> tuple[list[str], int | None, list[str]]:
    """Lines that count the samples, the number of training samples (None: unknown), a line about absent files."""
    settings, kind = config.data, "conversations" if config.data.findings else "pairs"
    paths = [source.root for source in settings.sources]
    if settings.instructions:
        paths += [settings.instructions.conversations, settings.instructions.images]
    try:
        data = build_data(config, decode_all=False)
    except DatasetError as error:
        if settings.sources and all(resolve(path).exists() for path in paths):
            raise
        return [f"  training {kind}: unknown"], None, [str(error)]
    # A pair has the class of its defect, or of the normal photo that a defect is simulated on.
    real, records = settings.defects == "real", getattr(data.train, "records", ())
    classes = Counter(record.class_name for record in records if record.is_anomalous == real)
    counts = dict(sorted(classes.items())) | {f"training {kind}": len(data.train)}
    counts |= {f"held-back {kind}": len(data.validation or ()), "instructions": len(data.instructions or ())}
    return [_row(name, number) for name, number in counts.items()], len(data.train), []


def _steps(config: ExperimentConfig, pairs: int | None, accumulation: int, processes: int) -> Iterator[str]:
    settings = config.training
    alternating = ", each followed by one of instructions" if config.data.instructions and settings.answers else ""
    shares = f"micro-batch {settings.micro_batch_size} x accumulation {accumulation} x {processes} process(es)"
    yield f"  batch {settings.batch_size} samples = {shares}{alternating}"
    if pairs is not None:
        yield f"  an epoch: {pairs / settings.batch_size:,.1f} steps"
    elif settings.steps is None:
        yield "  steps: unknown"
        return
    steps = total_steps(settings, pairs or 0)
    epochs = f", {steps * settings.batch_size / pairs:.1f} epochs" if pairs else ""
    yield f"  in all: {steps:,} steps{epochs}, of which {warmup_steps(settings, steps):,} warm up"


def _memory(config: ExperimentConfig, model: AnomalyGPT, processes: int) -> Iterator[str]:
    device, host = estimate_memory(config, model, processes)
    excess = sum(device.values()) / GIB - CARD
    verdict = f"fits {CARD} GiB" if excess <= 0 else f"does NOT fit {CARD} GiB, {excess:.1f} GiB too much"
    yield f"  each GPU: {_sizes(device)}: {verdict}"
    yield f"  host, each process: {_sizes(host)}"
    if config.llm is None or not model.has_llm:
        return
    llms = [config.llm.model_copy(update={"precision": precision}) for precision in PRECISIONS]
    each = [config.model_copy(update={"llm": llm}) for llm in llms]
    demos = [demo_memory(changed, model) for changed in each]
    rows = {
        "the language model": [demo["language model"] for demo in demos],
        "this training, each GPU": [sum(estimate_memory(changed, model, processes)[0].values()) for changed in each],
        "the demo, one GPU": [sum(demo.values()) for demo in demos],
    }
    yield f"  {'GiB of a GPU by llm.precision':<30} " + "".join(f"{precision:>8}" for precision in PRECISIONS)
    for name, sizes in rows.items():
        yield f"    {name:<28} " + "".join(f"{size / GIB:8.1f}" for size in sizes)
    yield f"  the demo at 4bit: {_sizes(demos[-1])}"


def demo_memory(config: ExperimentConfig, model: AnomalyGPT) -> Sizes:
    """A GPU's memory in bytes by use, where one person at a time asks about photos and nothing is trained."""
    assert config.llm is not None
    llm, width = model.llama_model, BYTES[config.precision]
    encoder: Any = model.encoder
    text = _count(encoder.text_tower.parameters()) if hasattr(encoder, "text_tower") else 0
    tokens = config.llm.max_target_tokens + FRAME_TOKENS
    past = 2 * llm.config.num_hidden_layers * _key_width(llm.config) * tokens
    return {
        "language model": weight_bytes(llm, config.llm.precision, width),
        "encoder": width * (_count(encoder.parameters()) - text),
        "trained parts and LoRA": 4 * _count(p for name, p in model.named_parameters() if part_of(name)),
        "keys and values, or the text tower": width * max(past, text),  # a class is encoded before an answer begins
        "CUDA": CUDA_BYTES // 2,  # one process, without exchange of gradients
    }


def _sizes(by_use: Sizes) -> str:
    uses = ", ".join(f"{use} {size / GIB:.2f}" for use, size in by_use.items() if size)
    return f"{sum(by_use.values()) / GIB:.1f} GiB ({uses})"


def _row(name: str, number: int) -> str:
    return f"  {name:<28} {number:>16,}"


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def estimate_memory(config: ExperimentConfig, model: AnomalyGPT, processes: int) -> tuple[Sizes, Sizes]:
    """One process's memory in bytes by use: of its GPU, and of the host. On a CPU the host has both, without CUDA.

    The model's trained parameters are marked, as :func:`planned_model` does.
    """
    settings, stage = config.training, config.training.zero_stage
    width = BYTES[settings.precision]
    trained = _count(p for p in model.parameters() if p.requires_grad)
    frozen = _count(p for p in model.parameters() if not p.requires_grad)
    # Every parameter once: in the engine's half precision, or in fp32 with the frozen ones as they were loaded.
    each = BYTES[config.precision] if settings.precision == "fp32" else width
    weights = frozen * each + trained * width
    if model.has_llm and config.llm:
        weights += weight_bytes(model.llama_model, config.llm.precision, each)
        weights -= weight_bytes(model.llama_model, "full", each)
    if stage == 3:
        weights = weights // processes + round(min(1.0, LIVE_PARAMETERS / (frozen + trained)) * weights)
    # From stage 1 on with DeepSpeed's buffer for exchanging them, from stage 2 on divided among the processes.
    gradients = trained * width * (2 if stage == 1 else 1)
    if stage >= 2 and not settings.offloads:
        gradients += trained * width // processes
    # AdamW in fp32: two moments, a copy, and in a step a gradient and a temporary; stage 0 in fp32 needs no copies.
    numbers = 3 if stage == 0 and settings.precision == "fp32" else 5
    optimizer = 4 * numbers * trained // (processes if stage > 0 else 1)
    device, host = {"weights": weights, "gradients": gradients}, {"libraries": PROCESS_BYTES}
    (host if settings.offloads else device)["optimiser"] = optimizer
    device["activations"] = _activations(config, model)
    device["CUDA and fragments"] = CUDA_BYTES + round(FRAGMENTED * sum(device.values()))
    return device, host


def _activations(config: ExperimentConfig, model: AnomalyGPT) -> int:
    """Bytes kept for the backward pass at the longest text: encoder in the engine's precision, decoder in fp32."""
    settings, spec = config.training, model.encoder.spec
    width, taps = BYTES[settings.precision], len(spec.taps)
    tokens = spec.grid**2 * spec.tap_width
    conversations, total = settings.micro_batch_size, 0
    if not config.data.findings:  # which are text alone
        references = conversations * (4 if settings.rotated_references else 1) * settings.answers
        conversations *= 2
        total = (conversations + references) * tokens * (taps + ENCODER_COPIES) * width
        total += 4 * conversations * taps * (3 * tokens + 2 * MAP_SIZE**2 * MAP_COPIES)
    if not model.has_llm or config.llm is None:
        return total
    llm, length = model.llama_model.config, config.llm.max_target_tokens
    h, f, layers = llm.hidden_size, llm.intermediate_size, llm.num_hidden_layers
    layer = 20 * h + width * (6 * h + 2 * _key_width(llm) + 3 * f)
    kept = layers * width * h + layer if settings.gradient_checkpointing else layers * layer
    return total + conversations * ((length + FRAME_TOKENS) * kept + length * llm.vocab_size * (4 * width + 12))


def _key_width(llm: Any) -> int:
    """Numbers of a token's key in one layer, as many as of its value."""
    heads = llm.num_attention_heads
    return llm.hidden_size * (getattr(llm, "num_key_value_heads", None) or heads) // heads
