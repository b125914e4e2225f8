"""Losses and verdicts on held-back pairs, and pictures of maps and answers; every process takes a share."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.sample import AnomalyBatch, SamplePair, collate_pairs
from anomalygpt.distributed import Process, summed
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.chat import chat_prompt
from anomalygpt.training.checkpoints import direct_parameters, gathered
from anomalygpt.training.pictures import sample_sheet

PARTS_OF_LOSS = ("total", "answer", "focal", "dice", "token_accuracy")
VERDICT_TOKENS = 8
PICTURE_PAIRS = 2  # of a sheet: each shows a normal photo and a defect
PICTURE_TOKENS = 40


@torch.no_grad()
def measure(
    model: AnomalyGPT, pairs: Dataset[SamplePair], config: ExperimentConfig, process: Process
) -> dict[str, float]:
    """Mean losses on held-back pairs, and the verdicts' accuracy; equal on all processes.

    Every process has to call it.
    """
    model.eval()
    held_back = evenly_chosen(pairs, config.training.validation_pairs)
    plan = share_of_batches(len(held_back), config.training.micro_batch_size, process)
    sums = np.zeros(len(PARTS_OF_LOSS) + 3)  # then the pairs, the right verdicts, and all verdicts
    for batch, (_, counted) in zip(_batches(held_back, plan), plan, strict=True):
        measured = _measured(model, batch.to(process.device), config)
        sums += measured if counted else 0
    means, (count, right, asked) = np.split(np.array(summed(sums.tolist())), [len(PARTS_OF_LOSS)])
    numbers = dict(zip(PARTS_OF_LOSS, (means / count).tolist(), strict=True))
    return numbers | ({"verdict_accuracy": float(right / asked)} if asked else {})


@torch.no_grad()
def draw_samples(
    model: AnomalyGPT, pairs: Dataset[SamplePair], config: ExperimentConfig, process: Process, path: Path
) -> None:
    """Draws photos, targets, maps and answers of some pairs. Every process has to call it; rank 0 writes.

    Raises:
        OSError: the picture can't be written.
    """
    model.eval()
    chosen = evenly_chosen(pairs, PICTURE_PAIRS)
    [batch] = _batches(chosen, [(list(range(len(chosen))), len(chosen))])
    batch = batch.to(process.device)
    answers, maps = _answers(model, batch, config, PICTURE_TOKENS)
    if process.is_main:
        questions = [turns[0].text if model.has_llm else None for turns in batch.conversations]
        talk = list(zip(questions, answers, strict=True))
        sample_sheet(batch.images, batch.masks, maps, talk, model.encoder.spec, path)


def _measured(model: AnomalyGPT, batch: AnomalyBatch, config: ExperimentConfig) -> np.ndarray:
    losses = model(
        batch.images,
        batch.conversations,
        max_length=config.llm.max_target_tokens if config.llm else 0,
        class_names=batch.class_names,
        target=batch.masks,
    )
    count = len(batch.images) // 2
    parts = [float(getattr(losses, part)) * count for part in PARTS_OF_LOSS]
    answers, _ = _answers(model, batch, config, VERDICT_TOKENS)
    truth = (batch.masks.flatten(1).amax(dim=1) > 0).tolist()
    right = [parse_verdict(said) == true for said, true in zip(answers, truth, strict=True) if said is not None]
    return np.array([*parts, count, sum(right), len(right)])


def _answers(
    model: AnomalyGPT, batch: AnomalyBatch, config: ExperimentConfig, tokens: int
) -> tuple[list[str | None], torch.Tensor]:
    """The model's answers to the first questions (None without a language model), and its maps."""
    with gathered(direct_parameters(model)):
        features = model.encode(batch.images)
        maps = model.anomaly_map(features, batch.class_names)
    if not model.has_llm:
        return [None] * len(maps), maps
    questions = [chat_prompt([], turns[0].text) for turns in batch.conversations]
    settings = GenerationSettings(max_new_tokens=tokens, temperature=0)
    # Under ZeRO 3 each layer needs all processes: one whose answers are done goes on beside the others.
    synced: dict[str, Any] = {"synced_gpus": True} if config.training.zero_stage == 3 else {}
    return list(model.answer(features, maps, questions, settings, **synced)), maps


def evenly_chosen(pairs: Dataset[SamplePair], count: int) -> Subset[SamplePair]:
    """At most ``count`` of the pairs, evenly spread, since they are sorted by class."""
    total = len(pairs)  # type: ignore[arg-type]
    return Subset(pairs, np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())


def share_of_batches(pairs: int, size: int, process: Process) -> list[tuple[list[int], int]]:
    """A process's batches of the pairs 0, 1, … as (positions, how many of them count).

    Every process gets the same number of batches, since under ZeRO 3 none may go through the model alone: when the
    pairs run out, pair 0 is repeated and does not count.
    """
    own = list(range(process.rank, pairs, process.world_size))
    batches = [(own[at : at + size], len(own[at : at + size])) for at in range(0, len(own), size)]
    needed = math.ceil(math.ceil(pairs / process.world_size) / size)
    return batches + [([0], 0)] * (needed - len(batches))


def _batches(pairs: Dataset[SamplePair], plan: list[tuple[list[int], int]]) -> Iterator[AnomalyBatch]:
    positions = [chosen for chosen, _ in plan]
    # Its own generator: the loader would draw from the one that dropout uses, and a resumed run differ.
    return iter(DataLoader(pairs, batch_sampler=positions, collate_fn=collate_pairs, generator=torch.Generator()))
