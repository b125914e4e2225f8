"""The arithmetic between our settings and DeepSpeed's."""

import pytest
import torch

from anomalygpt.config.schema import TrainingConfig
from anomalygpt.errors import UserError
from anomalygpt.training.engine import accumulation_steps, deepspeed_config, report_device_errors, warmup_steps


def test_batch_is_micro_times_accumulation_times_processes_or_refused_with_the_arithmetic():
    settings = TrainingConfig(batch_size=16, micro_batch_size=2)
    assert [accumulation_steps(settings, world_size=size) for size in (1, 4)] == [8, 2]
    settings = TrainingConfig(batch_size=16, micro_batch_size=3)
    with pytest.raises(UserError, match=r"batch_size 16 is not micro_batch_size 3 x 2 process.*; 12 would be"):
        accumulation_steps(settings, world_size=2)


def test_warmup_is_a_tenth_but_at_least_ten_steps():
    assert [warmup_steps(TrainingConfig(), total_steps=steps) for steps in (1000, 40, 5, 1)] == [100, 10, 4, 1]


def test_warm_up_can_be_left_out():
    optimizer = {"warmup_share": 0, "min_warmup_steps": 0}
    assert warmup_steps(TrainingConfig(optimizer=optimizer), total_steps=10) == 0


def test_a_lost_process_is_reported_in_one_line():
    words = r"another process of this run was lost \(.*Connection closed"
    with pytest.raises(UserError, match=words), report_device_errors():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shapes differ"), report_device_errors():
        raise RuntimeError("shapes differ")


def test_the_papers_defaults_reach_deepspeed():
    config = deepspeed_config(TrainingConfig(), world_size=2)
    optimizer = config["optimizer"]["params"]
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (1e-3, (0.9, 0.95), 1e-8)
    assert optimizer["weight_decay"] == 1e-3
    assert config["gradient_clipping"] == 1.0
    assert config["fp16"]["enabled"]
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["gradient_accumulation_steps"] == 8


def test_out_of_memory_is_reported_with_the_settings_that_need_less():
    words = "Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which 7.00 MiB is free"
    with pytest.raises(UserError) as caught, report_device_errors():
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. {words}. Including non-PyTorch memory, this process has 23 GiB"
        )
    assert "\n" not in str(caught.value)
    for hint in (
        f"{words}. These need less: ",
        "gradient_checkpointing=true",
        "micro_batch_size=1",
        "zero_stage=2",
    ):
        assert hint in str(caught.value)


@pytest.mark.parametrize("stage", range(4))
def test_every_stage_and_precision_reaches_deepspeed(stage):
    settings = TrainingConfig(zero_stage=stage, precision="bf16", offload_optimizer=False)
    config = deepspeed_config(settings, world_size=1, micro_steps=2)
    assert config["zero_optimization"] == {"stage": stage}
    assert config["bf16"]["enabled"] and "fp16" not in config
    assert config["optimizer"]["params"]["torch_adam"]
    assert config["gradient_accumulation_steps"] == 32  # each micro-batch is followed by one of instructions
    offloading = deepspeed_config(TrainingConfig(zero_stage=stage), world_size=1)
    assert ("offload_optimizer" in offloading["zero_optimization"]) is (stage > 0)
    assert offloading["optimizer"]["params"]["torch_adam"] is (stage == 0)  # DeepSpeed's takes tensors on the CPU alone
