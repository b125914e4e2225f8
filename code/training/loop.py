"""The training loop: batches in, optimiser steps, metrics and checkpoints out (AnomalyGPT section 3.5)."""

import hashlib
import itertools
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.findings_dialogue import FindingsBatch
from anomalygpt.datasets.instructions import InstructionBatch
from anomalygpt.datasets.pairs import AnomalyBatch, collate_pairs
from anomalygpt.distributed import Process, all_agree, on_main, summed
from anomalygpt.errors import UserError, first_offenders
from anomalygpt.inference.anomaly_map import concatenated
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT, Losses
from anomalygpt.model.build import build_model, trainable_parts
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.training import checkpoints
from anomalygpt.training.batches import Data, build_data, endless_batches
from anomalygpt.training.dry_run import parameter_table
from anomalygpt.training.engine import accumulation_steps, start_engine, total_steps
from anomalygpt.training.metrics_log import MetricsLog, draw_curves
from anomalygpt.training.validation import LOSS_PARTS, draw_samples, losses_of, validate

logger = logging.getLogger(__name__)

SHOWN = ("total", "answer", "focal", "dice", "instruction", "lr", "samples_per_second")  # on the progress bar


class Trainer:
    """Runs one training from its first or last saved step to its end, by DeepSpeed's engine of an AnomalyGPT."""

    def __init__(
        self, engine: Any, data: Data, config: ExperimentConfig, process: Process, folder: Path, total_steps: int
    ) -> None:
        self.engine = engine
        self.model: AnomalyGPT = engine.module
        self.data, self.config, self.settings = data, config, config.training
        self.process, self.folder, self.total_steps = process, folder, total_steps
        self.max_length = config.llm.max_target_tokens if config.llm else 0
        self.accumulation = accumulation_steps(self.settings, process.world_size)
        # A resumed run finds its place in the data by these and the number of processes. micro_batch_size may change,
        # so that a run can be resumed with less memory: at most an epoch's incomplete last micro-batch differs.
        self._identity = {
            **{f"training.{name}": getattr(self.settings, name) for name in ("zero_stage", "precision", "batch_size")},
            "training.offload_optimizer": self.settings.offloads,
            "training.trainable": sorted(self.settings.trainable),
            "number of processes": process.world_size,
            "seed": config.seed,
            "training pairs": len(data.train),
            "held-back pairs": len(data.validation or ()),
            "instructions": len(data.instructions or ()),
        }
        self._pairs: Iterator[AnomalyBatch | FindingsBatch] = iter(())
        self._instructions: Iterator[InstructionBatch | None] = itertools.repeat(None)
        self._log: MetricsLog | None = None
        self._not_finite: list[str] = []  # photos of the step whose losses are not
        self._stop_requested = False

    def run(self) -> None:
        """Trains to the last step with checkpoints on the way, and exports the trained tensors at the end.

        Raises :class:`UserError`: the folder's checkpoint does not fit, one can't be written, or :meth:`request_stop`
        was called; OSError: something else can't be written.
        """
        step = checkpoints.load_state(self.engine, self.folder, self.process, self._identity)
        # Second: a refused run must not overwrite the settings that the folder's run has recorded.
        on_main(self.process.is_main, lambda: checkpoints.record_run(self.config, self.folder))
        if self.process.is_main:
            self._log = MetricsLog(self.folder, self.config, step)
            if step == 0:
                (self.folder / checkpoints.BEST).unlink(missing_ok=True)  # another run's
        self.open_batches(step)
        self._steps(step)
        if self._log:
            self._log.close()
            draw_curves(self.folder)
        logger.info("wrote %s", checkpoints.export_delta(self.model, self.config, self.folder, self.process))

    def open_batches(self, step: int) -> None:
        """Prepares the batches of all steps after ``step``."""
        batches = partial(endless_batches, config=self.config, process=self.process, start=step * self.accumulation)
        self._pairs = batches(self.data.train, FindingsBatch.of if self.config.data.findings else collate_pairs)
        if self.data.instructions is not None:
            self._instructions = batches(self.data.instructions, InstructionBatch.of)

    def request_stop(self, number: int = signal.SIGTERM, _: object = None) -> None:
        """A signal handler: finish the step, save, and leave. A second Ctrl-C leaves at once."""
        self._stop_requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _steps(self, step: int) -> None:
        silent = not self.process.is_main
        with tqdm(total=self.total_steps, initial=step, unit="step", disable=silent) as bar:
            while step < self.total_steps:
                started = time.monotonic()
                numbers = self._optimizer_step(step)
                step += 1
                _require_finite(step, numbers, self._not_finite)
                numbers["lr"] = self.engine.get_lr()[0]
                numbers["samples_per_second"] = self.settings.batch_size / (time.monotonic() - started)
                bar.update()
                bar.set_postfix({name: f"{numbers[name]:.3g}" for name in SHOWN if name in numbers})
                if self._log:
                    self._log.write("train", step, **numbers)
                self._after_step(step)

    def _after_step(self, step: int) -> None:
        last = step == self.total_steps
        stopping = not all_agree(not self._stop_requested)
        due = last or (step % self.settings.validate_every == 0 and not stopping)  # launchers give a stop 30 seconds
        if due and self.data.validation is not None:
            numbers = validate(self.model, self.data.validation, self.config, self.process)
            _require_finite(step, numbers)
            logger.info("step %d, held back: %s", step, ", ".join(f"{key} {numbers[key]:.4f}" for key in numbers))
            trainable = self.settings.trainable
            checkpoints.keep_best(self.model, trainable, self.folder, step, numbers["total"], self.process)
            if self._log:
                self._log.write("validation", step, **numbers)
        if due and not self.config.data.findings:  # which have no photos
            path = self.folder / "samples" / f"step{step:07d}.png"
            draw_samples(self.model, self.data.validation or self.data.train, self.config, self.process, path)
            if self._log:
                self._log.write_picture(step, path)
        if last or stopping or step % self.settings.save_every == 0:
            weights = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
            own = (getattr(weight, "ds_tensor", weight).detach() for weight in weights)  # under ZeRO 3, a part of each
            if not all_agree(all(bool(weight.isfinite().all()) for weight in own)):
                _require_finite(step, {"of the weights": math.nan})
            keep = self.settings.keep_checkpoints
            checkpoints.save_state(self.engine, self.folder, step, self.process, keep, self._identity)
        if stopping and not last:
            raise UserError(f"stopped at step {step} as asked; start the same command again to go on")

    def _optimizer_step(self, step: int) -> dict[str, float]:
        """One step on pairs, and on instructions where there are any; the losses' means over all processes."""
        self.model.train()
        sums = dict.fromkeys(LOSS_PARTS, 0.0)
        for micro in range(self.accumulation):
            pair_batch, batch = next(self._pairs), next(self._instructions)
            # Dropout's draws depend on the place in the run alone, so that a resumed run has the same.
            place = [self.config.seed, step, micro, self.process.rank]
            torch.manual_seed(int(np.random.default_rng(place).integers(2**62)))
            losses = self._losses(pair_batch, step, micro)
            if not losses.total.isfinite():
                self._not_finite += getattr(pair_batch, "photos", ())
            self.engine.backward(losses.total)
            self.engine.step()  # changes weights only at the last micro-step
            for part in LOSS_PARTS:
                sums[part] += float(getattr(losses, part).detach()) / self.accumulation
            if batch is not None:
                batch = batch.to(self.process.device)
                losses = self.engine(batch.images, batch.conversations, max_length=self.max_length)
                self.engine.backward(losses.total)
                self.engine.step()
                sums["instruction"] = sums.get("instruction", 0.0) + float(losses.total.detach()) / self.accumulation
        return dict(zip(sums, (value / self.process.world_size for value in summed(list(sums.values()))), strict=True))

    def _losses(self, batch: AnomalyBatch | FindingsBatch, step: int, micro: int) -> Losses:
        batch, settings = batch.to(self.process.device), self.settings
        if isinstance(batch, FindingsBatch):
            return losses_of(self.engine, batch, self.max_length)
        # Seeded with the run's position, so that a resumed run draws the same. All processes draw alike, and all need
        # references, since under ZeRO 3 every one has to call the same layers.
        draw = np.random.default_rng([self.config.seed, step, micro]).random()
        views = None
        if self.model.has_llm and draw < settings.one_shot_probability and all_agree(batch.references is not None):
            assert batch.references is not None
            # A quarter turn of a square photo leaves no corner to fill: the paper's reflection padding has no effect.
            turns = range(4 if settings.rotated_references else 1)
            views = torch.stack([torch.rot90(batch.references, turn, dims=(-2, -1)) for turn in turns], dim=1)
        one_shot_map = {"references": views, "one_shot_threshold": settings.one_shot_threshold}
        return losses_of(self.engine, batch, self.max_length, **one_shot_map)


class FeatureCache:
    """Encodes (B, 3, S, S) images, but for those, at most ``room``, that it has kept; the features are the encoder's.

    An image is kept when it comes a second time, so that simulated defects, which are new in each epoch, take no room.
    """

    def __init__(self, encode: Callable[[Tensor], ImageFeatures], room: int) -> None:
        self.encode, self.room = encode, room
        self._seen: set[bytes] = set()
        self._kept: dict[bytes, ImageFeatures] = {}

    def __call__(self, images: Tensor) -> ImageFeatures:
        keys = [hashlib.blake2b(image.cpu().numpy().tobytes(), digest_size=16).digest() for image in images]
        rows = {key: self._kept[key] for key in keys if key in self._kept}
        if new := {key: place for place, key in enumerate(keys) if key not in rows}:
            encoded = self.encode(images[list(new.values())])
            rows |= {key: encoded[[at]] for at, key in enumerate(new)}  # copies: slices would keep the whole batch
            again = [key for key in new if key in self._seen]
            self._kept |= {key: rows[key] for key in again[: self.room - len(self._kept)]}
            self._seen.update(new)
        return concatenated([rows[key] for key in keys])


def build_trainer(config: ExperimentConfig, process: Process) -> Trainer:
    """Data, model and engine of a run."""
    settings = config.training
    torch.manual_seed(config.seed)
    # Data first, so that a wrong path is reported before gigabytes of weights are read.
    data = build_data(config, decode_all=True)
    model = build_model(config, process.device, with_llm=settings.answers)
    logger.info("parameters\n%s", "\n".join(parameter_table(model, trainable_parts(model, settings.trainable))))
    if model.has_llm and settings.gradient_checkpointing:
        model.llama_model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.data.cached_photos and settings.zero_stage < 3:  # where every process has to call the encoder
        model.encode = FeatureCache(model.encode, config.data.cached_photos)  # type: ignore[method-assign]
    classes = {record.class_name for pairs in (data.train, data.validation) for record in getattr(pairs, "records", ())}
    # Text features are computed here: later each process would need other classes, which ZeRO 3 does not allow.
    model.states([*sorted(classes), UNNAMED_CLASS])
    steps = total_steps(settings, len(data.train))
    logger.info("%d training samples, %d steps of %d", len(data.train), steps, settings.batch_size)
    engine = start_engine(model, settings, process.world_size, steps, micro_steps=1 if data.instructions is None else 2)
    return Trainer(engine, data, config, process, resolve(settings.output), steps)


def _require_finite(step: int, losses: Mapping[str, float], photos: Sequence[str] = ()) -> None:
    """Raises UserError where a loss is not finite; all processes have the same losses."""
    if not math.isfinite(sum(losses.values())):
        values = ", ".join(f"{name} {value}" for name, value in losses.items() if not math.isfinite(value))
        shown = f" on {first_offenders(photos)}" if photos else ""
        advice = "the last checkpoint stays; start again with a lower training.optimizer.lr, or training.precision=fp32"
        raise UserError(f"step {step}: a loss is not a finite number ({values}){shown}; {advice}")
