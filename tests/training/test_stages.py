"""Two real processes under every ZeRO stage, from ``torchrun`` and from ``deepspeed``: the same delta comes out."""

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from anomalygpt.model.checkpoint import read_tensors
from anomalygpt.training.checkpoints import complete_checkpoints
from tests.processes import started, wait_until
from tests.training.test_train import LAUNCHERS, command_line, losses, numbers, ok, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PORT = "29651"  # of the launchers of two machines, which can't agree on a free one
STEPS = 12  # of a run that is stopped: the signal comes long before the last one
# Under stage 3 both processes draw alike whether the prompt learner gets the one-shot map.
SAME_MAP = ("training.one_shot_probability=1",)
HALF_STEP = 2e-3  # of fp16 at the size of these weights; stage 3 sums in another order


@pytest.fixture(scope="module")
def stage_0(experiment) -> Path:
    """A run of two processes without partitioning."""
    folder = experiment.runs / "stage0"
    settings = (f"training.output={folder}", "training.zero_stage=0", *SAME_MAP)
    ok(train(experiment, *settings, launcher=LAUNCHERS["torchrun"]))
    return folder


@pytest.mark.parametrize(("stage", "launcher"), [(1, "torchrun"), (2, "deepspeed"), (3, "torchrun"), (3, "deepspeed")])
def test_a_partitioned_run_gives_the_losses_and_the_delta_of_stage_0(experiment, stage_0, stage, launcher):
    folder = experiment.runs / f"stage{stage}{launcher}"
    settings = (f"training.output={folder}", f"training.zero_stage={stage}", *SAME_MAP)
    ok(train(experiment, *settings, launcher=LAUNCHERS[launcher]))
    ours, theirs = losses(folder), losses(stage_0)
    assert sorted(ours) == [1, 2, 3, 4]
    for step, values in theirs.items():
        assert ours[step] == pytest.approx(values, rel=1e-3), step
    [mine], [other] = numbers(folder, "validation"), numbers(stage_0, "validation")
    assert mine["total"] == pytest.approx(other["total"], rel=1e-3)
    for file in ("model.safetensors", "pytorch_model.pt", "best.safetensors"):
        mine, other = read_tensors(folder / file), read_tensors(stage_0 / file)
        assert mine.keys() == other.keys()
        for name, tensor in other.items():
            assert tensor.numel(), name
            assert torch.allclose(mine[name].float(), tensor.float(), atol=HALF_STEP), name


@pytest.mark.parametrize(("stage", "launcher"), [(2, "deepspeed"), (3, "torchrun")])
def test_findings_train_alike_under_every_stage(words, stage, launcher):
    runs = {0: "torchrun", stage: launcher}
    for number, name in runs.items():
        settings = (f"training.output={words.runs / f'words{number}'}", f"training.zero_stage={number}")
        ok(train(words, *settings, launcher=LAUNCHERS[name]))
    theirs, ours = (words.runs / f"words{number}" for number in runs)
    for step, values in losses(theirs).items():
        assert losses(ours)[step] == pytest.approx(values, rel=1e-3), step
    mine, other = (read_tensors(folder / "model.safetensors") for folder in (ours, theirs))
    assert mine.keys() == other.keys()
    assert all(torch.allclose(mine[name].float(), other[name].float(), atol=HALF_STEP) for name in other)


def test_two_launchers_that_share_a_host_file_train_as_two_machines(experiment, stage_0):
    """Each machine's launcher is started by hand, so that none has to be reached by ssh."""
    folder, hosts = experiment.runs / "machines", experiment.runs / "hosts"
    hosts.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as both:
        running = []
        for rank in range(2):
            launcher = (LAUNCHERS["deepspeed"][0], "--hostfile", str(hosts), "--no_ssh", "--node_rank", str(rank))
            launcher += ("--master_addr", "127.0.0.1", "--master_port", PORT)
            settings = (f"training.output={folder}", "training.zero_stage=2", *SAME_MAP)
            command, options = command_line(experiment, *settings, launcher=launcher)
            running.append(both.enter_context(started(command, **silent, **options)))
        assert [process.wait(timeout=500) for process in running] == [0, 0]
    assert losses(folder) == losses(stage_0)


@pytest.mark.parametrize(("stage", "launcher"), [(2, "torchrun"), (3, "deepspeed")])
def test_two_stopped_processes_save_and_resume(experiment, tmp_path, stage, launcher):
    """The signal goes to every process of the run, loaders and launchers too, as a batch system sends it."""
    folder = experiment.runs / f"stopped{stage}"
    settings = (f"training.output={folder}", f"training.zero_stage={stage}")
    settings += ("data.workers=1", f"training.steps={STEPS}")
    command, options = command_line(experiment, *settings, launcher=LAUNCHERS[launcher])
    path = tmp_path / "stopped.log"
    with path.open("w") as log, started(command, stdout=log, stderr=log, **options) as running:
        wait_until(lambda: running.poll() is not None or 1 in losses(folder), 200)
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait(timeout=120) != 0
        # The launcher may leave before the processes that it has started.
        wait_until(lambda: not _alive(running.pid), 60)
    output = path.read_text()
    assert "start the same command again to go on" in output
    assert "DataLoader worker" not in output
    [reached] = [int(path.name.removeprefix("step")) for path in complete_checkpoints(folder)[-1:]]
    assert reached < STEPS
    resumed = ok(train(experiment, *settings, launcher=LAUNCHERS[launcher]))
    assert f"at step {reached}" in resumed.stderr + resumed.stdout
    assert sorted(losses(folder)) == [*range(1, STEPS + 1)]


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
