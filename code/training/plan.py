"""What a run would do and need, without training: ``train.py --dry-run``."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import DataConfig, ExperimentConfig, InstructionSource
from anomalygpt.datasets.build import build_cards, build_instructions, build_pairs, build_records
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.model.build import MAP_PARTS, trainable_parts
from anomalygpt.training.engine import accumulation_steps, total_steps, warmup_steps
from anomalygpt.training.memory import CARD, GIB, Estimate, Sizes, estimate
from anomalygpt.training.skeleton import Skeleton, build_skeleton

UNKNOWN = "unknown"
FROZEN_NAMES = {"llama_model": "language model"}


@dataclass(frozen=True)
class Counts:
    """What there is to learn from; None where the data are not there.

    Attributes:
        classes: pairs of each class.
        unknown: a line for each thing that is absent.
    """

    classes: dict[str, int] = field(default_factory=dict)
    pairs: int | None = None
    validation: int | None = None
    conversations: int | None = None
    unknown: tuple[str, ...] = ()


def describe(config: ExperimentConfig, processes: int) -> list[str]:
    """The plan of a run, a line each.

    Raises:
        UserError: the batch does not divide among the processes.
        UserError: a part is to be trained that the model does not have.
        DatasetError: data that are there are wrong.
    """
    settings = config.training
    accumulation = accumulation_steps(settings, processes)
    skeleton = build_skeleton(config, speaks=settings.answers)
    llm_known = skeleton.llm is not None or not settings.answers
    counts = count_data(config, skeleton.model.encoder.spec)
    lines = ["parameters"]
    lines += list(_parameters(config, skeleton, llm_known))
    lines += ["", "data", *_data(counts, config)]
    lines += ["", "steps", *_steps(config, counts, accumulation, processes)]
    lines += ["", "memory, estimated (docs/training.md says how)", *_memory(config, skeleton, processes)]
    absent = [*skeleton.unknown, *counts.unknown]
    if absent:
        lines += ["", "not known here", *(f"  {line}" for line in absent)]
    return lines


def count_data(config: ExperimentConfig, spec: Any) -> Counts:
    """Counts photos and conversations without decoding a photo; what is absent is told, not raised.

    Raises:
        DatasetError: a tree is there, but not as the settings say.
    """
    transform = ImageTransform(spec.size, spec.mean, spec.std)
    try:
        counts, absent = _count_pairs(config, transform)
        if config.data.instructions is not None and config.training.answers:
            absent_talk = _absent_instructions(config.data.instructions)
            absent += absent_talk
            if not absent_talk:
                counts["conversations"] = len(build_instructions(config.data, transform) or ())
    except OSError as error:
        raise DatasetError(f"data can't be read ({error})") from error
    return Counts(**counts, unknown=tuple(absent))


def _count_pairs(config: ExperimentConfig, transform: ImageTransform) -> tuple[dict[str, Any], list[str]]:
    """(Fields of :class:`Counts`, a line for each tree that is absent); nothing is counted where one is."""
    if absent := _absent_sources(config.data):
        _check_present(config.data)
        return {}, absent
    train, validation = build_pairs(config.data, transform, config.seed)
    counts = {
        "classes": dict(Counter(train.records[index].class_name for index in train.paired)),
        "pairs": len(train),
        "validation": len(validation) if validation is not None else 0,
    }
    return counts, []


def _absent_sources(data: DataConfig) -> list[str]:
    if not data.sources:
        return ["data: data.sources is empty; add one, as in data.sources='[{kind: mvtec, root: data/mvtec}]'"]
    kinds = {resolve(source.root): "file" if source.kind == "csv" else "folder" for source in data.sources}
    return [f"data: {path}: no such {kind}" for path, kind in kinds.items() if not path.exists()]


def _check_present(data: DataConfig) -> None:
    """A tree that is there and wrong is the user's to mend, whether or not another is absent."""
    present = tuple(source for source in data.sources if resolve(source.root).exists())
    if present:
        build_records(data.model_copy(update={"sources": present}))
        build_cards(data.model_copy(update={"sources": present}))


def _absent_instructions(source: InstructionSource) -> list[str]:
    paths = {resolve(source.conversations): "file", resolve(source.images): "folder"}
    return [f"instructions: {path}: no such {kind}" for path, kind in paths.items() if not path.exists()]


def parameter_table(model: nn.Module, trained: Mapping[str, Sequence[nn.Parameter]]) -> list[str]:
    """How many parameters each part has, a line each: those that are trained, those that are frozen, and all.

    Args:
        trained: part -> its parameters, as ``trainable_parts`` gives them.
    """
    lines = [_row(f"{part}, trained", _count(parameters)) for part, parameters in trained.items()]
    for name, child in model.named_children():
        frozen = _count(p for p in child.parameters() if not p.requires_grad)
        if frozen:
            lines.append(_row(f"{FROZEN_NAMES.get(name, name)}, frozen", frozen))
    for kind, learns in (("trained", True), ("frozen", False)):
        lines.append(_row(f"all {kind}", _count(p for p in model.parameters() if p.requires_grad is learns)))
    return lines


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _parameters(config: ExperimentConfig, skeleton: Skeleton, llm_known: bool) -> Iterator[str]:
    wanted = config.training.trainable
    known = wanted if llm_known else [part for part in wanted if part in MAP_PARTS]
    yield from parameter_table(skeleton.model, trainable_parts(skeleton.model, known))
    if not llm_known:
        yield f"  {', '.join(['language model', *(part for part in wanted if part not in known)])}: {UNKNOWN}"


def _data(counts: Counts, config: ExperimentConfig) -> Iterator[str]:
    if counts.pairs is None:
        yield f"  training pairs: {UNKNOWN}"
    else:
        for name, number in sorted(counts.classes.items()):
            yield _row(name, number)
        yield _row("training pairs", counts.pairs)
        yield _row("held-back pairs", counts.validation or 0)
    if config.data.instructions is not None and config.training.answers:
        known = counts.conversations is not None
        yield _row("instructions", counts.conversations or 0) if known else f"  instructions: {UNKNOWN}"


def _steps(config: ExperimentConfig, counts: Counts, accumulation: int, processes: int) -> Iterator[str]:
    settings = config.training
    alternating = ", each followed by one of instructions" if config.data.instructions and settings.answers else ""
    yield (
        f"  batch {settings.batch_size} pairs = micro-batch {settings.micro_batch_size} x accumulation {accumulation} "
        f"x {processes} process(es){alternating}"
    )
    if counts.pairs is not None:
        yield f"  an epoch: {counts.pairs / settings.batch_size:,.1f} steps"
    elif settings.steps is None:
        yield f"  steps: {UNKNOWN}"
        return
    steps = total_steps(settings, counts.pairs or 0)
    epochs = f", {steps * settings.batch_size / counts.pairs:.1f} epochs" if counts.pairs else ""
    yield f"  in all: {steps:,} steps{epochs}, of which {warmup_steps(settings, steps):,} warm up"


def foretell(config: ExperimentConfig, processes: int, *, on_cpu: bool = False) -> Estimate:
    """The memory estimate of a run, see :mod:`anomalygpt.training.memory`."""
    skeleton = build_skeleton(config, speaks=config.training.answers)
    trainable_parts(skeleton.model, config.training.trainable)
    return estimate(config, _sizes(skeleton), processes, on_cpu=on_cpu)


def _sizes(skeleton: Skeleton) -> Sizes:
    model, spec = skeleton.model, skeleton.model.encoder.spec
    numbers = {kind: sum(p.numel() for p in model.parameters() if p.requires_grad is kind) for kind in (True, False)}
    return Sizes(numbers[False], numbers[True], len(spec.taps), spec.grid**2, spec.tap_width, skeleton.llm)


def _memory(config: ExperimentConfig, skeleton: Skeleton, processes: int) -> Iterator[str]:
    sizes = _sizes(skeleton)
    found = estimate(config, sizes, processes)
    total = found.device_total
    room = CARD - total
    verdict = "fits 24 GiB" if room >= 0 else f"does NOT fit 24 GiB, {-room / GIB:.1f} GiB too much"
    yield f"  each GPU: {total / GIB:.1f} GiB, {verdict} ({_parts(found.device)})"
    if sizes.llm is not None:
        other = not config.training.gradient_checkpointing
        changed = config.training.model_copy(update={"gradient_checkpointing": other})
        turned = estimate(config.model_copy(update={"training": changed}), sizes, processes)
        word = "with" if other else "without"
        yield f"    {word} gradient checkpointing: {turned.device_total / GIB:.1f} GiB"
    yield f"  host, each process: {found.host_total / GIB:.1f} GiB ({_parts(found.host)})"
    if config.training.precision != "fp16":
        on_cpu = estimate(config, sizes, processes, on_cpu=True)
        yield f"  on a CPU instead, each process: {on_cpu.host_total / GIB:.1f} GiB ({_parts(on_cpu.host)})"


def _parts(by_use: dict[str, int]) -> str:
    return ", ".join(f"{use} {size / GIB:.2f}" for use, size in by_use.items() if size)


def _row(name: str, number: int) -> str:
    return f"  {name:<28} {number:>16,}"
