"""Checkpoints of a small engine, in real processes: killed in the middle of a save, on a full disk, partitioned."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomalygpt.training.checkpoints import complete_checkpoints
from tests.processes import run
from tests.shared_data import ROOT

# Trains a layer with AdamW and dropout, and saves after every step: argv is folder, last step, ZeRO stage.
RUN = """
import json, os, resource, signal, sys
from pathlib import Path
import torch
from torch import nn
from anomalygpt.config.schema import TrainingConfig
from anomalygpt.errors import user_errors
from anomalygpt import distributed
from anomalygpt.training.engine import start_engine
from anomalygpt.training.checkpoints import load_state, save_state

folder, last, stage = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
process = distributed.start("cpu")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(512, 512), nn.Dropout(0.5), nn.Linear(512, 1))
settings = TrainingConfig(
    batch_size=2, micro_batch_size=2 // process.world_size, precision="fp32", zero_stage=stage, offload_optimizer=False
)
engine = start_engine(model, settings, process.world_size, steps=10)
identity = {"number of processes": process.world_size, "training.zero_stage": stage}
with user_errors():
    step = load_state(engine, folder, process, identity)
if process.is_main:
    print(json.dumps({"resumed": step}), flush=True)
save = torch.save

def die(what, file, **options):
    save(what, file, **options)
    os.truncate(file, os.path.getsize(file) // 2)
    os.kill(os.getpid(), signal.SIGKILL)

while step < last:
    torch.manual_seed(1000 * step + process.rank)
    data = torch.ones(settings.micro_batch_size, 512)
    loss = engine(data).square().mean()
    engine.backward(loss)
    engine.step()
    step += 1
    if step == int(os.environ.get("DIE_IN_SAVE", 0)):
        torch.save = die
    full = int(os.environ.get("FULL_RANK", process.world_size - 1))
    if step == int(os.environ.get("NO_ROOM_FROM", 0)) and process.rank == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ.get("ROOM", 100_000)), resource.RLIM_INFINITY))
    with user_errors():
        save_state(engine, folder, step, process, keep=2, identity=identity)
    if process.is_main:
        print(json.dumps({"step": step, "loss": float(loss.detach())}), flush=True)
"""


def start(
    folder: Path, last: int, *, stage: int = 0, processes: int = 1, **variables: int
) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    script = folder.parent / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code"), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return run(
        [sys.executable, *launcher, str(script), str(folder), str(last), str(stage)],
        timeout=200,
        env=environment | {name: str(value) for name, value in variables.items()},
    )


def parsed(done: subprocess.CompletedProcess) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def losses(*runs: subprocess.CompletedProcess) -> dict[int, float]:
    return {line["step"]: line["loss"] for run in runs for line in parsed(run) if "step" in line}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """A run of four steps without interruption: its folder, which tests copy, and its losses."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, losses(start(folder, 4))


def test_a_run_killed_in_the_middle_of_a_save_resumes_from_the_save_before(tmp_path, finished):
    folder = tmp_path / "run"
    killed = start(folder, 4, DIE_IN_SAVE=3)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in complete_checkpoints(folder)] == ["step0000001", "step0000002"]
    assert any((folder / "checkpoints" / "step0000003").iterdir())
    resumed = start(folder, 4)
    assert parsed(resumed)[0] == {"resumed": 2}
    assert losses(killed, resumed) == finished[1]
    assert [path.name for path in complete_checkpoints(folder)] == ["step0000003", "step0000004"]


@pytest.mark.parametrize(
    ("setting", "why"),
    [("stage", "training.zero_stage 0"), pytest.param("processes", "number of processes 1", marks=pytest.mark.slow)],
)
def test_a_checkpoint_of_another_kind_of_run_is_refused_in_one_line(finished, tmp_path, setting, why):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    refused = start(folder, 5, **{setting: 2})
    lines = {line for line in refused.stderr.splitlines() if line.startswith("error:")}
    assert refused.returncode != 0
    assert len(lines) == 1  # each process says the same
    assert f"step0000004 was written with {why}, here 2. Take the run up as it was" in lines.pop()
    assert len(complete_checkpoints(folder)) == 2


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_in_one_line(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    [model] = complete_checkpoints(folder)[-1].glob("mp_rank_00_model_states.pt")
    os.truncate(model, model.stat().st_size // 2)
    refused = start(folder, 5)
    assert refused.returncode == 2
    assert "step0000004: can't be read, it is damaged" in refused.stderr
    assert "delete it to go on from the one before" in refused.stderr
    assert "Traceback" not in refused.stderr
    shutil.rmtree(complete_checkpoints(folder)[-1])
    assert parsed(start(folder, 3))[0] == {"resumed": 3}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 8 MiB, which holds two checkpoints of 3 MiB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_last_complete_checkpoint_stays(small_disk, finished):
    folder = small_disk / "run"
    full = start(folder, 4)
    assert full.returncode == 2, full.stderr[-2000:]
    assert list(losses(full)) == [1, 2]
    [complaint] = [line for line in full.stderr.splitlines() if line.startswith("error:")]
    assert "step0000003: the checkpoint could not be written" in complaint
    assert "MiB free there); make room" in complaint
    assert "Traceback" not in full.stderr
    assert [path.name for path in complete_checkpoints(folder)] == ["step0000001", "step0000002"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    resumed = start(folder, 4)
    assert parsed(resumed)[0] == {"resumed": 2}
    assert losses(resumed) == {step: finished[1][step] for step in (3, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_keeps_a_checkpoint_for_which_one_has_no_room(tmp_path, rank):
    folder = tmp_path / "run"
    done = start(folder, 3, stage=2, processes=2, NO_ROOM_FROM=2, FULL_RANK=rank, ROOM=30_000)
    assert done.returncode != 0
    assert "step0000002: the checkpoint could not be written" in done.stderr
    assert [path.name for path in complete_checkpoints(folder)] == ["step0000001"]
