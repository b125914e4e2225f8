"""How a process finds its rank and the other processes, for every launcher."""

import os

import pytest
import torch

from anomalygpt import distributed
from anomalygpt.errors import UserError

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """This process's variables without a launcher's; a test's changes are undone."""
    plain = {name: value for name, value in os.environ.items() if name not in (*PLACE, *MEETING)}
    monkeypatch.setattr(os, "environ", plain)
    return plain


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"RANK": "3"}, "LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set, beside RANK 3; torchrun sets"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "LOCAL_RANK not set"),
    ],
)
def test_variables_that_a_launcher_has_not_set_are_named_in_one_line(environment, variables, missing):
    environment.update(variables)
    with pytest.raises(UserError, match=missing) as caught:
        distributed.start("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (0, "--device cuda: .* PyTorch finds 0; .* --device cpu trains without one"),
        (2, r"process 2 of this machine .* has no GPU: PyTorch finds 2"),
    ],
)
def test_a_process_without_a_gpu_is_one_line(environment, monkeypatch, gpus, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    environment.update(RANK="2", LOCAL_RANK="2", WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    with pytest.raises(UserError, match=words):
        distributed.start("cuda")
