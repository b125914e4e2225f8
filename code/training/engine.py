"""DeepSpeed's configuration from the typed settings, and its engine."""

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import PolynomialLR

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.errors import UserError


@contextmanager
def report_out_of_memory(settings: TrainingConfig) -> Iterator[None]:
    """Turns the errors of a full GPU, and of a process that has lost another, into a :class:`UserError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        hints = {
            "training.gradient_checkpointing=true": not settings.gradient_checkpointing,
            "training.micro_batch_size=1": settings.micro_batch_size > 1,
            "training.zero_stage=2": settings.zero_stage == 0,
            "llm.precision=4bit": settings.zero_stage < 3,
            "training.offload_optimizer=true": not settings.offload_optimizer,
            "a smaller llm.max_target_tokens": True,
            "training.zero_stage=3 on several GPUs": settings.zero_stage < 3,
        }
        less = ", ".join(hint for hint, helps in hints.items() if helps)
        full = f"the GPU's memory is full ({str(error).split('. ')[0]})"
        raise UserError(f"{full}. These need less: {less}; --dry-run estimates it") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not any(words in reason for words in ("gloo", "NCCL", "Connection closed", "Connection reset")):
            raise
        advice = "the launcher's report names it; start the same command again to go on from the last checkpoint"
        raise UserError(f"another process of this run was lost ({reason[:100]}); {advice}") from error


def accumulation_steps(settings: TrainingConfig, world_size: int) -> int:
    """Micro-batches per optimiser step and process. Raises :class:`UserError` if the batch does not divide."""
    at_once = settings.micro_batch_size * world_size
    if settings.batch_size % at_once:
        raise UserError(
            f"training.batch_size {settings.batch_size} is not micro_batch_size {settings.micro_batch_size} x "
            f"{world_size} process(es) x a whole number; {at_once * max(1, settings.batch_size // at_once)} would be"
        )
    return settings.batch_size // at_once


def total_steps(settings: TrainingConfig, pairs: int) -> int:
    """The run's optimiser steps: ``steps`` if it is set, else those of ``epochs`` of the pairs."""
    return settings.steps or max(1, settings.epochs * pairs // settings.batch_size)


def warmup_steps(settings: TrainingConfig, total_steps: int) -> int:
    """A tenth of the run, and at least ten steps, by default (specification 7)."""
    wanted = max(settings.optimizer.min_warmup_steps, round(settings.optimizer.warmup_share * total_steps))
    return min(wanted, max(total_steps - 1, 1))


def deepspeed_config(
    settings: TrainingConfig, total_steps: int, world_size: int, micro_steps: int = 1
) -> dict[str, Any]:
    """The dictionary that ``deepspeed.initialize`` takes.

    ``micro_steps`` are the backward passes per micro-batch: 2 where an instruction step follows each anomaly step.
    """
    offloads, adam = settings.offloads, settings.optimizer.model_dump(include={"lr", "betas", "eps", "weight_decay"})
    warmup = warmup_steps(settings, total_steps)
    schedule = {
        "warmup_min_lr": 0.0,
        "warmup_max_lr": settings.optimizer.lr,
        "warmup_num_steps": warmup,
        "warmup_type": "linear",
        "total_num_steps": total_steps,
    }
    # Without warm-up start_engine makes one: DeepSpeed's always warms up.
    scheduler = {"scheduler": {"type": "WarmupDecayLR", "params": schedule}} if warmup else {}
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": True}} if offloads else {}
    precisions = {"fp16": {"fp16": {"enabled": True, "auto_cast": False}}, "bf16": {"bf16": {"enabled": True}}}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, world_size) * micro_steps,
        "gradient_clipping": settings.optimizer.clip_norm,
        "steps_per_print": 10**9,  # the trainer has its own log
        # DeepSpeed's fused Adam is compiled at the first start; PyTorch's needs no compiler.
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": not offloads}},
        **scheduler,
        "zero_optimization": {"stage": settings.zero_stage, **offload},
        **precisions.get(settings.precision, {}),
    }


def start_engine(model: nn.Module, config: dict[str, Any], total_steps: int = 1) -> Any:
    """A DeepSpeed engine of the trainable parameters; without a scheduler in ``config`` the rate falls linearly.

    Raises:
        UserError: CPU Adam can't be compiled.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns about its defaults at every start
    # DeepSpeed would compile a shared-memory op for CPU runs, which needs a C++ compiler; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # By default DeepSpeed sets aside half a billion numbers for exchanging gradients, 1 GB of the GPU's memory.
    bucket = {"reduce_bucket_size": min(500_000_000, sum(p.numel() for p in trainable))}
    config = config | {"zero_optimization": config["zero_optimization"] | bucket}
    falling: Any = None if "scheduler" in config else partial(PolynomialLR, total_iters=total_steps)
    try:
        engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=config, lr_scheduler=falling)
    except (RuntimeError, ImportError, OSError, subprocess.CalledProcessError) as error:
        if "cpu_adam" not in str(error):
            raise
        raise UserError(
            "training.offload_optimizer: DeepSpeed's CPU Adam could not be compiled, which needs a C++ compiler (g++); "
            "install one, or keep the optimiser on the GPU with training.offload_optimizer=false"
        ) from error
    return engine
