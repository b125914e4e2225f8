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
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.dialogue import parse_verdict
from anomalygpt.datasets.instructions import InstructionBatch, Instructions, collate_instructions
from anomalygpt.datasets.sample import AnomalyBatch, SamplePair, collate_pairs
from anomalygpt.errors import UserError
from anomalygpt.model.anomalygpt import AnomalyGPT, Losses
from anomalygpt.model.chat import chat_prompt
from anomalygpt.model.checkpoint import delta_tensors, save_tensors
from anomalygpt.model.llm import GenerationSettings
from anomalygpt.training.batches import endless_batches
from anomalygpt.training.distributed import Process, all_agree
from anomalygpt.training.engine import accumulation_steps
from anomalygpt.training.metrics_log import MetricsLog, read_metrics
from anomalygpt.training.pictures import sample_sheet
from anomalygpt.training.state import load_state, save_state

logger = logging.getLogger(__name__)

PARTS_OF_LOSS = ("total", "answer", "focal", "dice", "token_accuracy")
QUARTER_TURNS = 4
SHOWN = 4  # photos on a sample sheet
BEST = "best.safetensors"
VERDICT_TOKENS = 8


class Stopped(UserError):
    """The run was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Data:
    """What a run learns from, and the held-back pairs that it is measured on."""

    train: Dataset[SamplePair]
    validation: Dataset[SamplePair] | None = None
    instructions: Instructions | None = None


class Trainer:
    """Drives one run from its first or last saved step to its end.

    Args:
        engine: DeepSpeed's, around an :class:`AnomalyGPT`.
        folder: the run's folder, for numbers, pictures and checkpoints.
    """

    def __init__(
        self, engine: Any, data: Data, config: ExperimentConfig, process: Process, folder: Path, total_steps: int
    ) -> None:
        self.engine = engine
        self.data = data
        self.config = config
        self.settings = config.training
        self.process = process
        self.folder = folder
        self.total_steps = total_steps
        self.max_length = config.llm.max_target_tokens if config.llm else 0
        self.accumulation = accumulation_steps(self.settings, process.world_size)
        self._log: MetricsLog | None = None
        self._stop_asked = False

    @property
    def model(self) -> AnomalyGPT:
        """The model inside the engine."""
        return self.engine.module

    def run(self) -> None:
        """Trains to the last step; saves as it goes and at the end.

        Raises:
            Stopped: :meth:`stop_soon` was called; the state is saved.
            ResumeError: the folder's checkpoint does not fit this run.
        """
        step = load_state(self.engine, self.folder, self.process)
        self._log = MetricsLog(self.folder, step) if self.process.is_main else None
        pairs, instructions = self._pairs(step), self._instructions(step)
        bar = tqdm(total=self.total_steps, initial=step, desc="train", unit="step", disable=not self.process.is_main)
        while step < self.total_steps:
            started = time.monotonic()
            numbers = self._optimizer_step(pairs, instructions, step)
            step += 1
            numbers["lr"] = self.engine.get_lr()[0]
            numbers["samples_per_second"] = self.settings.batch_size / (time.monotonic() - started)
            bar.update()
            bar.set_postfix({key: f"{numbers[key]:.3g}" for key in ("total", "answer", "focal", "dice", "lr")})
            if self._log and step % self.settings.log_every == 0:
                self._log.write("train", step, **numbers)
            self._after_step(step)
        bar.close()
        if self._log:
            self._log.close()

    def stop_soon(self, *_: object) -> None:
        """A signal handler: finish the step, save, and leave."""
        self._stop_asked = True

    def _after_step(self, step: int) -> None:
        last = step == self.total_steps
        if self.process.is_main and (last or step % self.settings.validate_every == 0):
            self._validate(step)
        stopping = not all_agree(not self._stop_asked)
        if last or stopping or step % self.settings.save_every == 0:
            save_state(self.engine, self.folder, step, self.process, self.settings.keep_checkpoints)
        if stopping and not last:
            raise Stopped(f"stopped at step {step} as asked; start the same command again to go on")

    # -- one step -------------------------------------------------------------------------------------------------

    def _optimizer_step(
        self, pairs: Iterator[AnomalyBatch], instructions: Iterator[InstructionBatch] | None, step: int
    ) -> dict[str, float]:
        """``accumulation`` micro-steps on defects, each followed by one on instructions where there are any."""
        self.model.train()
        sums = dict.fromkeys(PARTS_OF_LOSS, 0.0)
        for micro in range(self.accumulation):
            losses = self._anomaly_losses(next(pairs), self._sees_one_shot(step, micro))
            self._learn(losses)
            for part in PARTS_OF_LOSS:
                sums[part] += float(getattr(losses, part).detach()) / self.accumulation
            if instructions is not None:
                batch = next(instructions).to(self.process.device)
                talk = self.engine(batch.images, batch.conversations, max_length=self.max_length)
                self._learn(talk)
                sums["instruction"] = sums.get("instruction", 0.0) + float(talk.total.detach()) / self.accumulation
        return sums

    def _learn(self, losses: Losses) -> None:
        self.engine.backward(losses.total)
        self.engine.step()  # changes weights only at the last micro-step

    def _anomaly_losses(self, batch: AnomalyBatch, one_shot: bool) -> Losses:
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

    # -- data -----------------------------------------------------------------------------------------------------

    def _pairs(self, step: int) -> Iterator[AnomalyBatch]:
        return self._endless(self.data.train, collate_pairs, step)

    def _instructions(self, step: int) -> Iterator[InstructionBatch] | None:
        if self.data.instructions is None:
            return None
        return self._endless(self.data.instructions, collate_instructions, step)

    def _endless(self, dataset: Dataset[Any], collate: Any, step: int) -> Iterator[Any]:
        return endless_batches(
            dataset,
            collate,
            batch_size=self.settings.micro_batch_size,
            process=self.process,
            seed=self.config.seed,
            workers=self.config.data.workers,
            start=step * self.accumulation,
        )

    # -- validation -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """Losses on held-back pairs, and how often the answer's verdict is right; keeps the best weights."""
        if self.data.validation is None:
            return
        self.model.eval()
        held_back = evenly_chosen(self.data.validation, self.settings.validation_pairs)
        size = self.settings.micro_batch_size
        loader = DataLoader(held_back, batch_size=size, collate_fn=collate_pairs, generator=torch.Generator())
        batches = len(loader)
        sums = dict.fromkeys(PARTS_OF_LOSS, 0.0)
        right: list[bool] = []
        for number, batch in enumerate(loader):
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
            right += self._verdicts_right(batch, step if number == 0 else None)
        if right:
            sums["verdict_accuracy"] = sum(right) / len(right)
        logger.info("step %d, held-back pairs: %s", step, ", ".join(f"{key} {sums[key]:.4f}" for key in sums))
        self._keep_best(step, sums["total"])
        if self._log:
            self._log.write("validation", step, **sums)

    def _verdicts_right(self, batch: AnomalyBatch, sheet_of_step: int | None) -> list[bool]:
        features = self.model.encode(batch.images)
        maps = self.model.anomaly_map(features, batch.class_names)
        answers = [""] * len(maps)
        if self.model.speaks:
            questions = [chat_prompt([], turns[0].text) for turns in batch.conversations]
            short = GenerationSettings(max_new_tokens=VERDICT_TOKENS, temperature=0)
            answers = self.model.answer(features, maps, questions, short)
        if sheet_of_step is not None:
            path = self.folder / "samples" / f"step{sheet_of_step:07d}.png"
            shown = slice(0, SHOWN)
            spec = self.model.encoder.spec
            sample_sheet(batch.images[shown], batch.masks[shown], maps[shown], answers[shown], spec, path)
        truth = batch.masks.flatten(1).amax(dim=1) > 0
        pairs = zip(answers, truth.tolist(), strict=True)
        return [parse_verdict(answer) == true for answer, true in pairs] if self.model.speaks else []

    def _keep_best(self, step: int, total: float) -> None:
        before = [line["total"] for line in read_metrics(self.folder) if line["kind"] == "validation"]
        if not before or total < min(before):
            tensors = delta_tensors(self.model, self.settings.trainable, torch.float16)
            save_tensors(tensors, self.folder / BEST, {"step": str(step), "validation_loss": f"{total:.6f}"})


def evenly_chosen(pairs: Dataset[SamplePair], count: int) -> Subset[SamplePair]:
    """At most ``count`` of the pairs, spread over all of them: they lie class by class."""
    total = len(pairs)  # type: ignore[arg-type]
    return Subset(pairs, np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())


def reference_views(references: Tensor, *, rotated: bool) -> Tensor:
    """(G, 3, S, S) -> (G, R, 3, S, S): each photo, with ``rotated`` also its three quarter turns.

    A quarter turn of a square photo leaves no corner to fill, so the paper's reflection padding never shows.
    """
    turns = range(QUARTER_TURNS if rotated else 1)
    return torch.stack([torch.rot90(references, k, dims=(-2, -1)) for k in turns], dim=1)
