"""Typed settings -> DeepSpeed's dictionary, and the engine that it drives."""

from typing import Any

from torch import nn

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.errors import UserError

BUCKET = 500_000_000  # DeepSpeed's own reduce_bucket_size, in numbers


class BatchError(UserError, ValueError):
    """The batch size does not divide among the processes; the message shows the arithmetic."""


def accumulation_steps(settings: TrainingConfig, world_size: int) -> int:
    """Micro-steps between two optimiser steps: batch = micro x accumulation x processes.

    Raises:
        BatchError: there is no whole number of them.
    """
    a_round = settings.micro_batch_size * world_size
    if settings.batch_size % a_round:
        raise BatchError(
            f"training.batch_size {settings.batch_size} is not micro_batch_size {settings.micro_batch_size} x "
            f"{world_size} process(es) x a whole number; {a_round * max(1, settings.batch_size // a_round)} would be"
        )
    return settings.batch_size // a_round


def total_steps(settings: TrainingConfig, pairs: int) -> int:
    """The run's optimiser steps: those that are set, else as many as ``epochs`` of the pairs make."""
    return settings.steps or max(1, settings.epochs * pairs // settings.batch_size)


def warmup_steps(settings: TrainingConfig, total_steps: int) -> int:
    """A tenth of the run, and at least ten steps, by default (SPEC 7)."""
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
                "torch_adam": not settings.offload_optimizer,
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
    if settings.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if settings.precision == "fp16":
        config["fp16"] = {"enabled": True, "auto_cast": False}
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
    return config


def start_engine(model: nn.Module, config: dict[str, Any]) -> Any:
    """Wraps the model's trainable parameters in a DeepSpeed engine."""
    import deepspeed

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # DeepSpeed would set aside half a billion numbers for exchanging gradients, 1 GB of the card.
    zero = config["zero_optimization"] | {"reduce_bucket_size": min(BUCKET, sum(p.numel() for p in trainable))}
    config = config | {"zero_optimization": zero}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=config)
    return engine
