"""The arithmetic between our settings and DeepSpeed's."""

import pytest

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.training.engine import BatchError, accumulation_steps, deepspeed_config, warmup_steps


def test_batch_is_micro_times_accumulation_times_processes():
    settings = TrainingConfig(batch_size=16, micro_batch_size=2)
    assert accumulation_steps(settings, world_size=1) == 8
    assert accumulation_steps(settings, world_size=4) == 2


def test_a_batch_that_does_not_divide_is_refused_with_the_arithmetic():
    settings = TrainingConfig(batch_size=16, micro_batch_size=3)
    with pytest.raises(BatchError, match=r"batch_size 16 is not micro_batch_size 3 x 2 process.*; 12 would be"):
        accumulation_steps(settings, world_size=2)


def test_warmup_is_a_tenth_but_at_least_ten_steps():
    assert warmup_steps(TrainingConfig(), total_steps=1000) == 100
    assert warmup_steps(TrainingConfig(), total_steps=40) == 10
    assert warmup_steps(TrainingConfig(), total_steps=5) == 4


def test_the_papers_defaults_reach_deepspeed():
    config = deepspeed_config(TrainingConfig(), total_steps=1000, world_size=2)
    optimizer = config["optimizer"]["params"]
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (1e-3, [0.9, 0.95], 1e-8)
    assert optimizer["weight_decay"] == 1e-3
    assert config["gradient_clipping"] == 1.0
    assert config["fp16"]["enabled"]
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["gradient_accumulation_steps"] == 8
