"""Typed settings -> DeepSpeed's dictionary, and the engine that it drives."""

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
def memory_told(settings: TrainingConfig) -> Iterator[None]:
    """Turns a GPU's full memory into a line that says what takes less.

    Raises:
        UserError: in the place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        less = [
            *(["training.gradient_checkpointing=true"] if not settings.gradient_checkpointing else []),
            *(["training.micro_batch_size=1"] if settings.micro_batch_size > 1 else []),
            *(["training.zero_stage=2"] if settings.zero_stage == 0 else []),
            *(["training.offload_optimizer=true"] if not settings.offload_optimizer else []),
            "a smaller llm.max_target_tokens",
            *(["training.zero_stage=3 on several GPUs"] if settings.zero_stage < 3 else []),
        ]
        raise UserError(
            f"the GPU's memory is full ({str(error).split('. ')[0]}). Less is taken with {', '.join(less)}; "
            f"--dry-run estimates it"
        ) from error


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
    chosen = settings.optimizer
    accumulation = accumulation_steps(settings, world_size) * micro_steps
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": chosen.clip_norm,
        "steps_per_print": 10**9,  # the trainer has its own log
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": chosen.lr,
                "betas": list(chosen.betas),
                "eps": chosen.eps,
                "weight_decay": chosen.weight_decay,
                # DeepSpeed's fused Adam is compiled at the first start; PyTorch's own needs no compiler.
                "torch_adam": not settings.offloads,
            },
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0.0,
                "warmup_max_lr": chosen.lr,
                "warmup_num_steps": warmup_steps(settings, total_steps),
                "warmup_type": "linear",
                "total_num_steps": total_steps,
            },
        },
        "zero_optimization": {"stage": settings.zero_stage},
    }
    if settings.offloads:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if settings.precision == "fp16":
        config["fp16"] = {"enabled": True, "auto_cast": False}
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
    return config


def start_engine(model: nn.Module, config: dict[str, Any]) -> Any:
    """Wraps the model's trainable parameters in a DeepSpeed engine.

    Raises:
        UserError: DeepSpeed's optimiser for the CPU can't be compiled.
    """
    import deepspeed

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
