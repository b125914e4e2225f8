"""Typed settings -> DeepSpeed's dictionary, and the engine that it drives."""

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.errors import UserError

BUCKET = 500_000_000  # DeepSpeed's own reduce_bucket_size, in numbers


def require_device(settings: TrainingConfig, device: torch.device) -> None:
    """Compares the engine's precision with the device, before weights are read.

    Raises:
        UserError: DeepSpeed does not train in fp16 on a CPU.
    """
    if device.type == "cpu" and settings.precision == "fp16":
        raise UserError(
            "training.precision fp16 needs a GPU, and this run is on the CPU; training.precision=fp32 trains there"
        )


@contextmanager
def report_out_of_memory(settings: TrainingConfig) -> Iterator[None]:
    """Turns a full GPU's error into one line that says which settings need less memory.

    Raises:
        UserError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        hints = {
            "training.gradient_checkpointing=true": not settings.gradient_checkpointing,
            "training.micro_batch_size=1": settings.micro_batch_size > 1,
            "training.zero_stage=2": settings.zero_stage == 0,
            "training.offload_optimizer=true": not settings.offload_optimizer,
            "a smaller llm.max_target_tokens": True,
            "training.zero_stage=3 on several GPUs": settings.zero_stage < 3,
        }
        less = ", ".join(hint for hint, helps in hints.items() if helps)
        full = f"the GPU's memory is full ({str(error).split('. ')[0]})"
        raise UserError(f"{full}. Less is taken with {less}; --dry-run estimates it") from error


def accumulation_steps(settings: TrainingConfig, world_size: int) -> int:
    """Micro-steps between two optimiser steps: batch = micro x accumulation x processes.

    Raises:
        UserError: there is no whole number of them.
    """
    a_round = settings.micro_batch_size * world_size
    if settings.batch_size % a_round:
        raise UserError(
            f"training.batch_size {settings.batch_size} is not micro_batch_size {settings.micro_batch_size} x "
            f"{world_size} process(es) x a whole number; {a_round * max(1, settings.batch_size // a_round)} would be"
        )
    return settings.batch_size // a_round


def total_steps(settings: TrainingConfig, pairs: int) -> int:
    """The run's optimiser steps: those that are set, else as many as ``epochs`` of the pairs make."""
    return settings.steps or max(1, settings.epochs * pairs // settings.batch_size)


def warmup_steps(settings: TrainingConfig, total_steps: int) -> int:
    """A tenth of the run, and at least ten steps, by default (specification 7)."""
    wanted = max(settings.optimizer.min_warmup_steps, round(settings.optimizer.warmup_share * total_steps))
    return min(wanted, max(total_steps - 1, 1))


def deepspeed_config(
    settings: TrainingConfig, total_steps: int, world_size: int, micro_steps: int = 1
) -> dict[str, Any]:
    """The dictionary that ``deepspeed.initialize`` takes.

    Args:
        micro_steps: backward passes for each micro-batch (2 where an instruction step follows each anomaly step).
    """
    chosen, offloads = settings.optimizer, settings.offloads
    # DeepSpeed's fused Adam is compiled at the first start; PyTorch's own needs no compiler.
    adam = {"lr": chosen.lr, "betas": list(chosen.betas), "eps": chosen.eps, "weight_decay": chosen.weight_decay}
    schedule = {
        "warmup_min_lr": 0.0,
        "warmup_max_lr": chosen.lr,
        "warmup_num_steps": warmup_steps(settings, total_steps),
        "warmup_type": "linear",
        "total_num_steps": total_steps,
    }
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": True}} if offloads else {}
    precisions = {"fp16": {"fp16": {"enabled": True, "auto_cast": False}}, "bf16": {"bf16": {"enabled": True}}}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, world_size) * micro_steps,
        "gradient_clipping": chosen.clip_norm,
        "steps_per_print": 10**9,  # the trainer has its own log
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": not offloads}},
        "scheduler": {"type": "WarmupDecayLR", "params": schedule},
        "zero_optimization": {"stage": settings.zero_stage, **offload},
        **precisions.get(settings.precision, {}),
    }


def start_engine(model: nn.Module, config: dict[str, Any]) -> Any:
    """Wraps the model's trainable parameters in a DeepSpeed engine.

    Raises:
        UserError: DeepSpeed's optimiser for the CPU can't be compiled.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns of its own defaults at every start
    # DeepSpeed would compile a shared-memory op for CPU runs, which needs a C++ compiler; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # DeepSpeed would set aside half a billion numbers for exchanging gradients, 1 GB of the card.
    zero = config["zero_optimization"] | {"reduce_bucket_size": min(BUCKET, sum(p.numel() for p in trainable))}
    config = config | {"zero_optimization": zero}
    try:
        engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=config)
    except (RuntimeError, ImportError, OSError, subprocess.CalledProcessError) as error:
        if "cpu_adam" not in str(error):
            raise
        raise UserError(
            "training.offload_optimizer: DeepSpeed's CPU Adam could not be compiled, which needs a C++ compiler (g++); "
            "install one, or keep the optimiser on the GPU with training.offload_optimizer=false"
        ) from error
    return engine
