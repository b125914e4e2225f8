"""What a run would do and need, without training: ``train.py --dry-run``."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError
from anomalygpt.model.build import META, build_model, local_llm, missing_weights, trainable_parts
from anomalygpt.model.llm import planned_config
from anomalygpt.training.batches import build_data
from anomalygpt.training.engine import accumulation_steps, total_steps, warmup_steps


def describe(config: ExperimentConfig, processes: int) -> list[str]:
    """The plan of a run as lines of text. Raises :class:`UserError` where the settings and what is there do not fit."""
    accumulation = accumulation_steps(config.training, processes)
    model = build_model(config, META, with_llm=config.training.answers)
    assumed = planned_config(local_llm(config.llm.weights))[1] if config.llm else None
    if assumed and config.training.answers and not model.has_llm:
        raise UserError(f"{assumed}: nothing can be planned without it")
    data, pairs, absent = _data(config)
    lines = ["parameters", *parameter_table(model, trainable_parts(model, config.training.trainable))]
    lines += ["", "data", *data, "", "steps", *_steps(config, pairs, accumulation, processes)]
    absent += [f"{path}: not there yet" for path in missing_weights(config, all_absent=True)]
    absent += [assumed] if assumed else []
    return lines + (["", "not known here", *(f"  {line}" for line in absent)] if absent else [])


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
    settings = config.data
    paths = [source.root for source in settings.sources]
    if settings.instructions:
        paths += [settings.instructions.conversations, settings.instructions.images]
    try:
        data = build_data(config, decode_all=False)
    except DatasetError as error:
        if settings.sources and all(resolve(path).exists() for path in paths):
            raise
        return ["  training samples: unknown"], None, [str(error)]
    # A pair has the class of its defect, or of the normal photo that a defect is simulated on.
    real, records = settings.defects == "real", getattr(data.train, "records", ())
    classes = Counter(record.class_name for record in records if record.is_anomalous == real)
    counts = dict(sorted(classes.items())) | {"training samples": len(data.train)}
    counts |= {"held-back samples": len(data.validation or ()), "instructions": len(data.instructions or ())}
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


def _row(name: str, number: int) -> str:
    return f"  {name:<28} {number:>16,}"


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
