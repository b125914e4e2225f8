"""The training loop: batches in, optimiser steps, numbers and checkpoints out (AnomalyGPT section 3.5; SPEC 7)."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.dialogue import parse_verdict
from anomalygpt.datasets.sample import AnomalyBatch, collate_pairs
from anomalygpt.datasets.simulated import SimulatedPairs
from anomalygpt.model.anomalygpt import AnomalyGPT, Losses
from anomalygpt.model.chat import chat_prompt
from anomalygpt.model.llm import GenerationSettings
from anomalygpt.training.distributed import Process
from anomalygpt.training.engine import accumulation_steps
from anomalygpt.training.metrics_log import MetricsLog
from anomalygpt.training.state import load_state, save_state

logger = logging.getLogger(__name__)

PARTS_OF_LOSS = ("total", "answer", "focal", "dice", "token_accuracy")
QUARTER_TURNS = 4


@dataclass(frozen=True)
class Data:
    """What a run learns from, and the held-back pairs that it is measured on."""

    train: SimulatedPairs
    validation: SimulatedPairs | None


class Trainer:
    """Drives one run from its first or last saved step to its end.

    Args:
        engine: DeepSpeed's, around an :class:`AnomalyGPT`.
        folder: the run's folder, for numbers and checkpoints.
    """

    def __init__(
        self,
        engine: Any,
        data: Data,
        config: ExperimentConfig,
        process: Process,
        folder: Path,
        total_steps: int,
    ) -> None:
        self.engine = engine
        self.data = data
        self.config = config
        self.settings = config.training
        self.process = process
        self.folder = folder
        self.total_steps = total_steps
        self.log = MetricsLog(folder) if process.is_main else None
        self.max_length = config.llm.max_target_tokens if config.llm else 0

    @property
    def model(self) -> AnomalyGPT:
        """The model inside the engine."""
        return self.engine.module

    def run(self) -> None:
        """Trains to the last step; saves as it goes and at the end."""
        step = load_state(self.engine, self.folder)
        batches = self._batches(step)
        bar = tqdm(total=self.total_steps, initial=step, desc="train", unit="step", disable=not self.process.is_main)
        while step < self.total_steps:
            started = time.monotonic()
            numbers = self._optimizer_step(batches, step)
            step += 1
            numbers["seconds"] = time.monotonic() - started
            bar.update()
            bar.set_postfix({key: f"{numbers[key]:.3f}" for key in ("total", "answer", "focal", "dice")})
            if self.log and step % self.settings.log_every == 0:
                self.log.write("train", step, lr=self.engine.get_lr()[0], **numbers)
            if step % self.settings.validate_every == 0 or step == self.total_steps:
                self._validate(step)
            if step % self.settings.save_every == 0 or step == self.total_steps:
                save_state(self.engine, self.folder, step, self.process.is_main)
        bar.close()

    def _optimizer_step(self, batches: Iterator[AnomalyBatch], step: int) -> dict[str, float]:
        self.model.train()
        accumulation = accumulation_steps(self.settings, self.process.world_size)
        sums = dict.fromkeys(PARTS_OF_LOSS, 0.0)
        for micro in range(accumulation):
            losses = self._losses(next(batches), self._sees_one_shot(step, micro))
            self.engine.backward(losses.total)
            self.engine.step()
            for part in PARTS_OF_LOSS:
                sums[part] += float(getattr(losses, part).detach()) / accumulation
        return sums

    def _losses(self, batch: AnomalyBatch, one_shot: bool) -> Losses:
        batch = batch.to(self.process.device)
        references = None
        if one_shot and batch.references is not None and self.model.speaks:
            references = reference_views(batch.references, rotated=self.settings.rotated_references)
        return self.engine(
            batch.images,
            batch.conversations,
            max_length=self.max_length,
            class_names=batch.class_names,
            target=batch.masks,
            references=references,
        )

    def _sees_one_shot(self, step: int, micro: int) -> bool:
        # Drawn from where the run is, not from a running generator: a resumed run draws the same.
        rng = np.random.default_rng([self.config.seed, step, micro, self.process.rank])
        return bool(rng.random() < self.settings.one_shot_probability)

    def _batches(self, step: int) -> Iterator[AnomalyBatch]:
        """Endless batches, epoch after epoch; a resumed run goes on where it stopped."""
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.data.train, self.process.world_size, self.process.rank, seed=self.config.seed, drop_last=True
        )
        loader = DataLoader(
            self.data.train,
            batch_size=self.settings.micro_batch_size,
            sampler=sampler,
            num_workers=self.config.data.workers,
            collate_fn=collate_pairs,
            drop_last=True,
        )
        a_step = accumulation_steps(self.settings, self.process.world_size)
        epoch, skipped = divmod(step * a_step, len(loader))
        while True:
            sampler.set_epoch(epoch)
            self.data.train.set_epoch(epoch)
            for number, batch in enumerate(loader):
                if number >= skipped:
                    yield batch
            epoch, skipped = epoch + 1, 0

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """Losses on held-back pairs, and how often the first answer's verdict is right. Rank 0 alone measures."""
        if self.data.validation is None or not self.process.is_main:
            return
        self.model.eval()
        loader = DataLoader(self.data.validation, batch_size=self.settings.micro_batch_size, collate_fn=collate_pairs)
        pairs = min(self.settings.validation_pairs, len(self.data.validation))
        sums, right, asked = dict.fromkeys(PARTS_OF_LOSS, 0.0), 0, 0
        batches = -(-pairs // self.settings.micro_batch_size)
        for _, batch in zip(range(batches), loader, strict=False):
            batch = batch.to(self.process.device)
            losses = self.model(
                batch.images,
                batch.conversations,
                max_length=self.max_length,
                class_names=batch.class_names,
                target=batch.masks,
            )
            for part in PARTS_OF_LOSS:
                sums[part] += float(getattr(losses, part)) / batches
            verdicts = self._verdicts(batch)
            truth = batch.masks.flatten(1).amax(dim=1) > 0
            right += sum(verdict == bool(true) for verdict, true in zip(verdicts, truth, strict=False))
            asked += len(verdicts)
        accuracy = right / max(asked, 1)
        logger.info("step %d: validation loss %.4f, verdicts right %.1f %%", step, sums["total"], 100 * accuracy)
        if self.log:
            self.log.write("validation", step, verdict_accuracy=accuracy, **sums)

    def _verdicts(self, batch: AnomalyBatch) -> list[bool | None]:
        if not self.model.speaks:
            return []
        features = self.model.encode(batch.images)
        maps = self.model.anomaly_map(features, batch.class_names)
        questions = [chat_prompt([], turns[0].text) for turns in batch.conversations]
        answers = self.model.answer(features, maps, questions, GenerationSettings(max_new_tokens=8, temperature=0))
        return [parse_verdict(answer) for answer in answers]


def reference_views(references: Tensor, *, rotated: bool) -> Tensor:
    """(G, 3, S, S) -> (G, R, 3, S, S): each photo, with ``rotated`` also its three quarter turns.

    A quarter turn of a square photo leaves no corner to fill, so the paper's reflection padding never shows.
    """
    turns = range(QUARTER_TURNS if rotated else 1)
    return torch.stack([torch.rot90(references, k, dims=(-2, -1)) for k in turns], dim=1)
