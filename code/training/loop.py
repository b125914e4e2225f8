"""The training loop: batches in, optimiser steps, metrics and checkpoints out (AnomalyGPT section 3.5)."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.instructions import InstructionBatch, Instructions, collate_instructions
from anomalygpt.datasets.sample import AnomalyBatch, SamplePair, collate_pairs
from anomalygpt.distributed import Process, all_agree, on_main, summed
from anomalygpt.errors import UserError
from anomalygpt.model.anomalygpt import AnomalyGPT, Losses
from anomalygpt.training import checkpoints
from anomalygpt.training.batches import endless_batches
from anomalygpt.training.engine import accumulation_steps
from anomalygpt.training.metrics_log import MetricsLog
from anomalygpt.training.validation import PARTS_OF_LOSS, draw_samples, measure

logger = logging.getLogger(__name__)

QUARTER_TURNS = 4
# On the progress bar, beside steps a second and the time that is left.
SHOWN = {"total": "loss"} | {name: name for name in ("answer", "focal", "dice", "instruction", "lr")}
SHOWN |= {"samples_per_second": "pairs/s"}


@dataclass(frozen=True)
class Data:
    """What a run is trained on, and the held-back pairs that it is measured on."""

    train: Dataset[SamplePair]
    validation: Dataset[SamplePair] | None = None
    instructions: Instructions | None = None


class Trainer:
    """Runs one training from its first or last saved step to its end.

    Args:
        engine: DeepSpeed's, around an :class:`AnomalyGPT`.
        folder: the run's folder, for metrics, pictures and checkpoints.
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
        self._best: checkpoints.BestWeights | None = None
        self._stop_asked = False

    @property
    def model(self) -> AnomalyGPT:
        """The model inside the engine."""
        return self.engine.module

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint's place in the data follows from, besides the number of processes.

        ``micro_batch_size`` is left free, so that a run whose GPU was full can be resumed with less: it moves only the
        few samples of an epoch's incomplete last micro-batch.
        """
        data = self.data
        return {
            "training.batch_size": self.settings.batch_size,
            "seed": self.config.seed,
            "training pairs": len(data.train),  # type: ignore[arg-type]
            "held-back pairs": len(data.validation) if data.validation is not None else 0,  # type: ignore[arg-type]
            "instructions": len(data.instructions) if data.instructions is not None else 0,
        }

    def run(self) -> None:
        """Trains to the last step; saves on the way, and exports the trained tensors at the end.

        Raises:
            UserError: the folder's checkpoint is damaged or does not fit this run, the folder can't be written, or
                :meth:`stop_soon` was called.
        """
        # First: a refused run must not overwrite what the folder records of its own.
        checkpoints.require_same_run(self.engine, self.folder, self.process, self._facts())
        on_main(self.process.is_main, lambda: checkpoints.record_run(self.config, self.folder))
        checkpoints.require_shared(self.folder)
        step = checkpoints.load_state(self.engine, self.folder, self.process)
        self._best = checkpoints.BestWeights(self.folder, self.process, resumed=step > 0)
        self._log = MetricsLog(self.folder, step) if self.process.is_main else None
        batches = partial(
            endless_batches,
            batch_size=self.settings.micro_batch_size,
            process=self.process,
            seed=self.config.seed,
            workers=self.config.data.workers,
            start=step * self.accumulation,
        )
        with ExitStack() as stack:  # an error must end the loader processes, too
            pairs = stack.enter_context(closing(batches(self.data.train, collate_pairs)))
            talk = None
            if self.data.instructions is not None:
                talk = stack.enter_context(closing(batches(self.data.instructions, collate_instructions)))
            self._steps(step, pairs, talk)
        if self._log:
            self._log.close()
        logger.info("wrote %s", checkpoints.export_delta(self.model, self.config, self.folder, self.process))

    def _steps(self, step: int, pairs: Iterator[AnomalyBatch], talk: Iterator[InstructionBatch] | None) -> None:
        bar = tqdm(total=self.total_steps, initial=step, desc="train", unit="step", disable=not self.process.is_main)
        while step < self.total_steps:
            started = time.monotonic()
            numbers = self._optimizer_step(pairs, talk, step)
            step += 1
            numbers["lr"] = self.engine.get_lr()[0]
            numbers["samples_per_second"] = self.settings.batch_size / (time.monotonic() - started)
            bar.update()
            bar.set_postfix({name: f"{numbers[key]:.3g}" for key, name in SHOWN.items() if key in numbers})
            if self._log and step % self.settings.log_every == 0:
                self._log.write("train", step, **numbers)
            self._after_step(step)
        bar.close()

    def stop_soon(self, number: int = signal.SIGTERM, _: object = None) -> None:
        """A signal handler: finish the step, save, and leave. A second Ctrl-C leaves at once."""
        self._stop_asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _after_step(self, step: int) -> None:
        last = step == self.total_steps
        stopping = not all_agree(not self._stop_asked)
        if last or (step % self.settings.validate_every == 0 and not stopping):  # launchers give a stop 30 seconds
            self._validate(step)
        if last or (step % self.settings.picture_every == 0 and not stopping):
            self._draw(step)
        stopping = stopping or not all_agree(not self._stop_asked)
        saved = False
        if last or stopping or step % self.settings.save_every == 0:
            keep = self.settings.keep_checkpoints
            saved = checkpoints.save_state(self.engine, self.folder, step, self.process, keep, self._facts())
        if stopping and not last:
            lost = "" if saved else ", but its state could not be saved: it goes on from the checkpoint before, if any"
            raise UserError(f"stopped at step {step} as asked{lost}; start the same command again to go on")

    # -- one step -----------------------------------------------------------------------------------------------------

    def _optimizer_step(
        self, pairs: Iterator[AnomalyBatch], instructions: Iterator[InstructionBatch] | None, step: int
    ) -> dict[str, float]:
        """``accumulation`` micro-steps on defects, each followed by one on instructions where there are any.

        Returns:
            The losses' means over the batch, of all processes together.
        """
        self.model.train()
        sums = dict.fromkeys(PARTS_OF_LOSS, 0.0)
        for micro in range(self.accumulation):
            losses = self._anomaly_losses(next(pairs), step, micro)
            self._learn(losses)
            for part in PARTS_OF_LOSS:
                sums[part] += float(getattr(losses, part).detach()) / self.accumulation
            if instructions is not None:
                batch = next(instructions).to(self.process.device)
                talk = self.engine(batch.images, batch.conversations, max_length=self.max_length)
                self._learn(talk)
                sums["instruction"] = sums.get("instruction", 0.0) + float(talk.total.detach()) / self.accumulation
        return dict(zip(sums, (value / self.process.world_size for value in summed(list(sums.values()))), strict=True))

    def _learn(self, losses: Losses) -> None:
        self.engine.backward(losses.total)
        self.engine.step()  # changes weights only at the last micro-step

    def _anomaly_losses(self, batch: AnomalyBatch, step: int, micro: int) -> Losses:
        batch, settings = batch.to(self.process.device), self.settings
        # Under ZeRO 3 every process has to go through the same layers: all draw alike, and all need references.
        partitioned = settings.zero_stage == 3
        # Drawn from the run's position, not from a running generator: a resumed run draws the same.
        rng = np.random.default_rng([self.config.seed, step, micro, 0 if partitioned else self.process.rank])
        one_shot = bool(rng.random() < settings.one_shot_probability) and self.model.has_llm
        views = None
        if one_shot and (all_agree(batch.references is not None) if partitioned else batch.references is not None):
            assert batch.references is not None
            views = reference_views(batch.references, rotated=settings.rotated_references)
        return self.engine(
            batch.images,
            batch.conversations,
            max_length=self.max_length,
            class_names=batch.class_names,
            target=batch.masks,
            references=views,
            one_shot_threshold=settings.one_shot_threshold,
        )

    # -- validation ---------------------------------------------------------------------------------------------------

    def _validate(self, step: int) -> None:
        """Measures on held-back pairs, and keeps the best weights; every process takes part."""
        if self.data.validation is None:
            return
        numbers = measure(self.model, self.data.validation, self.config, self.process)
        logger.info("step %d, held-back pairs: %s", step, ", ".join(f"{key} {numbers[key]:.4f}" for key in numbers))
        if self._best:
            self._best.offer(self.model, self.settings.trainable, step, numbers["total"])
        if self._log:
            self._log.write("validation", step, **numbers)

    def _draw(self, step: int) -> None:
        """Draws photos, targets, maps and answers; without held-back pairs, of training pairs."""
        path = self.folder / "samples" / f"step{step:07d}.png"
        try:
            draw_samples(self.model, self.data.validation or self.data.train, self.config, self.process, path)
        except OSError as error:
            logger.error("%s: could not be written (%s); the run goes on", path, error)


def reference_views(references: Tensor, *, rotated: bool) -> Tensor:
    """(G, 3, S, S) -> (G, R, 3, S, S): each photo, with ``rotated`` also its three quarter turns.

    A quarter turn of a square photo leaves no corner to fill, so the paper's reflection padding never shows.
    """
    turns = range(QUARTER_TURNS if rotated else 1)
    return torch.stack([torch.rot90(references, k, dims=(-2, -1)) for k in turns], dim=1)
