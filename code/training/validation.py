"""How good a run is on held-back pairs, and pictures of what the model sees; every process takes a share."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.sample import AnomalyBatch, SamplePair, collate_pairs
from anomalygpt.distributed import Process, summed
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.chat import chat_prompt
from anomalygpt.training.partitioned import held_by_composites, whole
from anomalygpt.training.pictures import sample_sheet

PARTS_OF_LOSS = ("total", "answer", "focal", "dice", "token_accuracy")
VERDICT_TOKENS = 8
PICTURE_PAIRS = 2  # of a sheet: each shows a normal photo and a defect
PICTURE_TOKENS = 40


class Validator:
    """Measures the model on held-back pairs. All methods are collectives: every process has to call them.

    Args:
        max_length: conversations are cut there, in tokens.
    """

    def __init__(
        self, model: AnomalyGPT, pairs: Dataset[SamplePair], settings: TrainingConfig, max_length: int, process: Process
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.settings = settings
        self.max_length = max_length
        self.process = process

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Mean losses on the held-back pairs, and how often the answer's verdict is right; equal on all processes."""
        self.model.eval()
        held_back = evenly_chosen(self.pairs, self.settings.validation_pairs)
        plan = share_of_batches(len(held_back), self.settings.micro_batch_size, self.process)
        sums = np.zeros(len(PARTS_OF_LOSS) + 3)  # then the pairs, the right verdicts, and all verdicts
        for batch, (_, counted) in zip(_batches(held_back, plan), plan, strict=True):
            found = self._measured(batch.to(self.process.device))
            sums += found if counted else 0  # one that only keeps the others company
        means, (pairs, right, asked) = np.split(np.array(summed(sums.tolist())), [len(PARTS_OF_LOSS)])
        numbers = dict(zip(PARTS_OF_LOSS, (means / pairs).tolist(), strict=True))
        return numbers | ({"verdict_accuracy": float(right / asked)} if asked else {})

    def _measured(self, batch: AnomalyBatch) -> np.ndarray:
        losses = self.model(
            batch.images,
            batch.conversations,
            max_length=self.max_length,
            class_names=batch.class_names,
            target=batch.masks,
        )
        count = len(batch.images) // 2
        parts = [float(getattr(losses, part)) * count for part in PARTS_OF_LOSS]
        answers, _ = self._answers(batch, VERDICT_TOKENS)
        truth = (batch.masks.flatten(1).amax(dim=1) > 0).tolist()
        right = [
            parse_verdict(answer) == true for answer, true in zip(answers, truth, strict=True) if answer is not None
        ]
        return np.array([*parts, count, sum(right), len(right)])

    def _answers(self, batch: AnomalyBatch, tokens: int) -> tuple[list[str | None], torch.Tensor]:
        """The model's answers to the first questions (None where it can't speak), and its maps."""
        with whole(held_by_composites(self.model)):
            features = self.model.encode(batch.images)
            maps = self.model.anomaly_map(features, batch.class_names)
        if not self.model.speaks:
            return [None] * len(maps), maps
        questions = [chat_prompt([], turns[0].text) for turns in batch.conversations]
        settings = GenerationSettings(max_new_tokens=tokens, temperature=0)
        # A process whose answers are done goes on beside the others: under ZeRO 3 each layer needs all of them.
        together: dict[str, Any] = {"synced_gpus": True} if self.settings.zero_stage == 3 else {}
        return list(self.model.answer(features, maps, questions, settings, **together)), maps

    @torch.no_grad()
    def picture(self, path: Path) -> None:
        """Draws photos, targets, maps and answers of some held-back pairs; rank 0 writes.

        Raises:
            OSError: the picture can't be written.
        """
        self.model.eval()
        chosen = evenly_chosen(self.pairs, PICTURE_PAIRS)
        [batch] = _batches(chosen, [(list(range(len(chosen))), len(chosen))])
        batch = batch.to(self.process.device)
        answers, maps = self._answers(batch, PICTURE_TOKENS)
        if self.process.is_main:
            questions = [turns[0].text if self.model.speaks else None for turns in batch.conversations]
            talk = list(zip(questions, answers, strict=True))
            sample_sheet(batch.images, batch.masks, maps, talk, self.model.encoder.spec, path)


def evenly_chosen(pairs: Dataset[SamplePair], count: int) -> Subset[SamplePair]:
    """At most ``count`` of the pairs, spread over all of them: they lie class by class."""
    total = len(pairs)  # type: ignore[arg-type]
    return Subset(pairs, np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())


def share_of_batches(pairs: int, size: int, process: Process) -> list[tuple[list[int], int]]:
    """A process's batches of the pairs 0, 1, … as (positions, how many of them count).

    Every process gets equally many batches, since under ZeRO 3 none may go through the model alone: where the pairs
    run out, pair 0 comes once more and does not count.
    """
    own = list(range(process.rank, pairs, process.world_size))
    batches = [(own[at : at + size], len(own[at : at + size])) for at in range(0, len(own), size)]
    needed = math.ceil(math.ceil(pairs / process.world_size) / size)
    return batches + [([0], 0)] * (needed - len(batches))


def _batches(pairs: Dataset[SamplePair], plan: list[tuple[list[int], int]]) -> Iterator[AnomalyBatch]:
    positions = [chosen for chosen, _ in plan]
    # Its own generator: the loader would draw from the one that dropout uses, and a resumed run differ.
    return iter(DataLoader(pairs, batch_sampler=positions, collate_fn=collate_pairs, generator=torch.Generator()))
