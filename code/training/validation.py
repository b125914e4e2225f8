"""Losses and verdicts on held-back pairs, and pictures of maps and answers, computed by all processes together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision.utils import save_image

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.findings_dialogue import FindingsBatch
from anomalygpt.datasets.pairs import AnomalyBatch, collate_pairs
from anomalygpt.distributed import Process, summed
from anomalygpt.files import replacing
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.model.anomalygpt import AnomalyGPT, Losses
from anomalygpt.model.chat import chat_prompt, layout_of
from anomalygpt.model.encoder import ImageFeatures

LOSS_PARTS = ("total", "answer", "focal", "dice", "token_accuracy")
VERDICT_TOKENS = 8
PICTURE_PAIRS = 2  # of a sheet: each shows a normal photo and a defect
PICTURE_TOKENS = 40


@torch.no_grad()
def validate(model: AnomalyGPT, pairs: Dataset[Any], config: ExperimentConfig, process: Process) -> dict[str, float]:
    """Mean losses on held-back pairs by name, and ``verdict_accuracy``; all processes call it, and get the same."""
    model.eval()
    chosen = evenly_spaced(pairs, config.training.validation_pairs)
    max_length = config.llm.max_target_tokens if config.llm else 0
    sums = np.zeros(len(LOSS_PARTS) + 3)  # then the pairs, the correct verdicts, and all verdicts
    collate = FindingsBatch.of if config.data.findings else collate_pairs
    # Every process gets as many batches, since under ZeRO 3 none may call the model alone: some pairs may count twice.
    sampler: DistributedSampler[Any] = DistributedSampler(chosen, process.world_size, process.rank, shuffle=False)
    for batch in DataLoader(chosen, config.training.micro_batch_size, sampler=sampler, collate_fn=collate):
        batch = batch.to(process.device)
        count, correct = len(batch.conversations), list[bool]()
        losses = losses_of(model, batch, max_length)
        if isinstance(batch, AnomalyBatch) and model.has_llm:
            answers, _ = _answers(model, batch, config, VERDICT_TOKENS)
            anomalous = (batch.masks.flatten(1).amax(dim=1) > 0).tolist()
            correct = [parse_verdict(a) == truth for a, truth in zip(answers, anomalous, strict=True) if a is not None]
        parts = [float(getattr(losses, part)) * count for part in LOSS_PARTS]
        sums += [*parts, count, sum(correct), len(correct)]
    means, (total, right, verdicts) = np.split(np.array(summed(sums.tolist())), [len(LOSS_PARTS)])
    numbers = dict(zip(LOSS_PARTS, (means / total).tolist(), strict=True))
    return numbers | ({"verdict_accuracy": float(right / verdicts)} if verdicts else {})


def losses_of(model: Callable[..., Losses], batch: AnomalyBatch | FindingsBatch, length: int, **options: Any) -> Losses:
    """The losses of a batch; see :meth:`AnomalyGPT.forward` for ``options``."""
    if isinstance(batch, FindingsBatch):
        features = ImageFeatures((), batch.embeddings)
        return model(features, batch.conversations, max_length=length, maps=batch.maps)
    options |= {"class_names": batch.class_names, "target": batch.masks}
    return model(batch.images, batch.conversations, max_length=length, **options)


@torch.no_grad()
def draw_samples(model: AnomalyGPT, pairs: Dataset[Any], config: ExperimentConfig, process: Process, to: Path) -> None:
    """Draws photos, targets and maps of some pairs as rows of a PNG; with a language model, answers go to a ``.txt``.

    Every process has to call it; rank 0 writes, or raises OSError.
    """
    model.eval()
    chosen = evenly_spaced(pairs, PICTURE_PAIRS)
    batch = collate_pairs([chosen[position] for position in range(len(chosen))]).to(process.device)
    answers, maps = _answers(model, batch, config, PICTURE_TOKENS)
    if not process.is_main:
        return
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.encoder.spec.mean, model.encoder.spec.std))
    photos = batch.images.float().cpu() * std + mean
    columns = [photos, *(F.interpolate(each.float().cpu(), photos.shape[-2:]) for each in (batch.masks, maps))]
    rows = torch.stack([column.expand(-1, 3, -1, -1) for column in columns], dim=1)
    with replacing(to) as temporary:
        save_image(rows.flatten(0, 1), temporary, nrow=len(columns))
    if model.has_llm:
        lines = [f"{turns[0].text}\n{answer}\n\n" for turns, answer in zip(batch.conversations, answers, strict=True)]
        to.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")


def _answers(
    model: AnomalyGPT, batch: AnomalyBatch, config: ExperimentConfig, tokens: int
) -> tuple[list[str | None], torch.Tensor]:
    """The model's answers to the first questions (None without a language model), and its maps."""
    # DeepSpeed gathers a module's parameters when it is called. These methods call submodules alone, so parameters that
    # modules (an encoder's positions, the base prompts) or dictionaries hold directly are gathered here.
    import deepspeed  # here, since it takes seconds

    holders = [m for m in model.modules() if isinstance(m, nn.ParameterDict) or next(m.children(), None) is not None]
    direct = (parameter for module in holders for parameter in module.parameters(recurse=False))
    with deepspeed.zero.GatheredParameters(direct):
        features = model.encode(batch.images)
        maps = model.anomaly_map(features, batch.class_names)
    if not model.has_llm:
        return [None] * len(maps), maps
    prompts = [chat_prompt([], turns[0].text, layout_of(model.tokenizer)) for turns in batch.conversations]
    questions = [model.tokenizer.encode(prompt) for prompt in prompts]
    settings = GenerationSettings(max_new_tokens=tokens, temperature=0)
    # Under ZeRO 3 each layer needs all processes: one that has finished its answers continues with the others.
    return list(model.answer(features, maps, questions, settings, whole=config.training.zero_stage == 3)), maps


def evenly_spaced(pairs: Dataset[Any], count: int) -> Subset[Any]:
    """At most ``count`` of the pairs, evenly spaced, since they are sorted by class."""
    total = len(pairs)  # type: ignore[arg-type]
    return Subset(pairs, np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
