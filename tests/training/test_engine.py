"""The arithmetic between our settings and DeepSpeed's."""

import pytest
import torch

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.errors import UserError
from anomalygpt.training.engine import (
    accumulation_steps,
    deepspeed_config,
    report_out_of_memory,
    require_device,
    warmup_steps,
)


def test_batch_is_micro_times_accumulation_times_processes():
    settings = TrainingConfig(batch_size=16, micro_batch_size=2)
    assert accumulation_steps(settings, world_size=1) == 8
    assert accumulation_steps(settings, world_size=4) == 2


def test_a_batch_that_does_not_divide_is_refused_with_the_arithmetic():
    settings = TrainingConfig(batch_size=16, micro_batch_size=3)
    with pytest.raises(UserError, match=r"batch_size 16 is not micro_batch_size 3 x 2 process.*; 12 would be"):
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


def test_half_precision_on_a_cpu_is_refused_with_what_works_there():
    with pytest.raises(UserError, match=r"fp16 needs a GPU.*training.precision=fp32 trains there"):
        require_device(TrainingConfig(), torch.device("cpu"))
    require_device(TrainingConfig(), torch.device("cuda", 0))
    require_device(TrainingConfig(precision="bf16"), torch.device("cpu"))


def test_a_full_gpu_is_told_with_the_settings_that_take_less():
    settings = TrainingConfig(gradient_checkpointing=False, micro_batch_size=2, batch_size=2)
    with pytest.raises(UserError) as told, report_out_of_memory(settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    assert "\n" not in str(told.value)
    for hint in ("CUDA out of memory)", "gradient_checkpointing=true", "micro_batch_size=1", "zero_stage=3"):
        assert hint in str(told.value)
    assert "offload_optimizer" not in str(told.value)  # that is on already


def test_every_stage_and_precision_reaches_deepspeed():
    for stage in (0, 1, 2, 3):
        settings = TrainingConfig(zero_stage=stage, precision="bf16", offload_optimizer=False)
        config = deepspeed_config(settings, total_steps=100, world_size=1, micro_steps=2)
        assert config["zero_optimization"] == {"stage": stage}
        assert config["bf16"]["enabled"] and "fp16" not in config
        assert config["optimizer"]["params"]["torch_adam"]
        assert config["gradient_accumulation_steps"] == 32  # each micro-batch has an instruction step beside it
        assert config["scheduler"]["params"]["total_num_steps"] == 100


@pytest.mark.parametrize("stage", [0, 1])
def test_the_optimiser_moves_to_the_cpu_from_stage_1_on(stage):
    config = deepspeed_config(TrainingConfig(zero_stage=stage), total_steps=100, world_size=1)
    assert ("offload_optimizer" in config["zero_optimization"]) is (stage == 1)
    assert config["optimizer"]["params"]["torch_adam"] is (stage == 0)  # DeepSpeed's takes tensors on the CPU alone
