"""How a process finds its rank and the other processes, for every launcher."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch

from anomalygpt import distributed
from anomalygpt.errors import UserError
from tests.processes import started
from tests.shared_data import ROOT

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
MPICH = {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "4"}
# Of a batch script or an interactive shell: room for four tasks, of which one runs.
ALLOCATION = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
SRUN |= {"SLURM_STEP_NUM_TASKS": "4"}


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """This process's variables without a launcher's; a test's changes are undone."""
    plain = {name: value for name, value in os.environ.items() if name not in (*PLACE, *MEETING)}
    monkeypatch.setattr(os, "environ", plain)
    return plain


@pytest.mark.parametrize(
    "variables",
    [
        OPEN_MPI,
        MPICH,
        SRUN,
        # mpirun in an allocation has started one Slurm task per machine.
        SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"} | OPEN_MPI,
        {"PMI_RANK": "3", "PMI_SIZE": "4"} | SRUN,  # srun --mpi=pmi2
    ],
    ids=["Open MPI", "MPICH", "srun", "Open MPI in Slurm", "srun with PMI"],
)
def test_mpirun_and_srun_give_a_process_its_rank(environment, variables):
    environment.update(variables)
    distributed.adopt_launcher_environment()
    assert [environment[name] for name in PLACE] == ["3", "1", "4"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        ALLOCATION,
        ALLOCATION | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"RANK": "0"} | SRUN,  # torchrun or deepspeed, started by srun
    ],
    ids=["nothing", "batch script", "interactive step", "mpirun -n 1", "another launcher"],
)
def test_single_processes_and_those_of_other_launchers_keep_their_variables(environment, variables):
    environment.update(variables)
    distributed.adopt_launcher_environment()
    assert environment.get("RANK") == variables.get("RANK")
    assert "WORLD_SIZE" not in environment


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        (OPEN_MPI, "MASTER_ADDR, MASTER_PORT not set, beside RANK 3"),
        (SRUN | {"MASTER_ADDR": "machine1"}, "MASTER_PORT not set, beside RANK 3"),
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


MEET = """
from anomalygpt import distributed

process = distributed.start("cpu")
print(process.rank, process.local_rank, process.world_size, distributed.summed([process.rank + 1]))
distributed.stop()
"""


def test_two_processes_of_mpirun_are_one_run(environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment |= {"PYTHONPATH": str(ROOT / "code"), "OMP_NUM_THREADS": "1"}
    environment |= {"OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", MEET]
    with ExitStack() as both:
        running = []
        for rank in ("0", "1"):
            place = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
            one = started(command, env=environment | place, stdout=subprocess.PIPE, text=True)
            running.append(both.enter_context(one))
        printed = [process.communicate(timeout=200)[0].splitlines()[-1] for process in running]
    assert printed == ["0 0 2 [3.0]", "1 1 2 [3.0]"]
