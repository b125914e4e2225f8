"""DeepSpeed's configuration from the typed settings, and its engine."""

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import get_linear_schedule_with_warmup

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.errors import UserError, full_gpu

LESS_MEMORY = (
    "These need less: training.gradient_checkpointing=true, training.micro_batch_size=1, training.zero_stage=2 (3 on "
    "several GPUs), training.offload_optimizer=true, llm.precision=4bit, a smaller llm.max_target_tokens; --dry-run "
    "estimates it"
)
LOST_PROCESS = ("gloo", "NCCL", "Connection closed", "Connection reset")  # in the errors of a process that lost another


@contextmanager
def report_device_errors() -> Iterator[None]:
    """Turns the errors of a full GPU, and of a process that has lost another, into a :class:`UserError`."""
    try:
        with full_gpu(LESS_MEMORY):
            yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not any(words in reason for words in LOST_PROCESS):
            raise
        advice = "the launcher's report names it; start the same command again to go on from the last checkpoint"
        raise UserError(f"another process of this run was lost ({reason[:100]}); {advice}") from error


def accumulation_steps(settings: TrainingConfig, world_size: int) -> int:
    """Micro-batches per optimiser step and process. Raises :class:`UserError` if the batch does not divide."""
    at_once = settings.micro_batch_size * world_size
    if settings.batch_size % at_once:
        wanted = f"micro_batch_size {settings.micro_batch_size} x {world_size} process(es) x a whole number"
        near = at_once * max(1, settings.batch_size // at_once)
        raise UserError(f"training.batch_size {settings.batch_size} is not {wanted}; {near} would be")
    return settings.batch_size // at_once


def total_steps(settings: TrainingConfig, pairs: int) -> int:
    """The run's optimiser steps: ``steps`` if it is set, else those of ``epochs`` of the pairs."""
    return settings.steps or max(1, settings.epochs * pairs // settings.batch_size)


def warmup_steps(settings: TrainingConfig, total_steps: int) -> int:
    """A tenth of the run, and at least ten steps, by default (specification 7)."""
    wanted = max(settings.optimizer.min_warmup_steps, round(settings.optimizer.warmup_share * total_steps))
    return min(wanted, max(total_steps - 1, 1))


def deepspeed_config(settings: TrainingConfig, world_size: int, micro_steps: int = 1) -> dict[str, Any]:
    """The dictionary that ``deepspeed.initialize`` takes.

    ``micro_steps`` are the backward passes per micro-batch: 2 where an instruction step follows each anomaly step.
    """
    offloads, adam = settings.offloads, settings.optimizer.model_dump(include={"lr", "betas", "eps", "weight_decay"})
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": True}} if offloads else {}
    precisions = {"fp16": {"fp16": {"enabled": True, "auto_cast": False}}, "bf16": {"bf16": {"enabled": True}}}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, world_size) * micro_steps,
        "gradient_clipping": settings.optimizer.clip_norm,
        "steps_per_print": 10**9,  # the trainer has its own log
        # DeepSpeed's fused Adam is compiled at the first start; PyTorch's needs no compiler.
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": not offloads}},
        "zero_optimization": {"stage": settings.zero_stage, **offload},
        **precisions.get(settings.precision, {}),
    }


def start_engine(model: nn.Module, settings: TrainingConfig, world_size: int, steps: int, micro_steps: int = 1) -> Any:
    """A DeepSpeed engine of the trainable parameters, whose learning rate rises and falls within ``steps``."""
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns about its defaults at every start
    # DeepSpeed would compile a shared-memory op for CPU runs, which needs a C++ compiler; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = deepspeed_config(settings, world_size, micro_steps)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # By default DeepSpeed sets aside half a billion numbers for exchanging gradients, 1 GB of the GPU's memory.
    config["zero_optimization"]["reduce_bucket_size"] = min(500_000_000, sum(p.numel() for p in trainable))
    warmup = warmup_steps(settings, steps)
    rate: Any = partial(get_linear_schedule_with_warmup, num_warmup_steps=warmup, num_training_steps=steps)
    try:
        engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=config, lr_scheduler=rate)
    except (RuntimeError, ImportError, OSError, subprocess.CalledProcessError) as error:
        if "cpu_adam" not in str(error):
            raise
        advice = "install a C++ compiler (g++), or keep it on the GPU with training.offload_optimizer=false"
        raise UserError(f"training.offload_optimizer: DeepSpeed's CPU Adam could not be compiled; {advice}") from error
    return engine
