"""What a run leaves in its folder: the exported delta, the best weights, and its settings."""

import math
import os
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from anomalygpt.config.load import load_config
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import file_shapes, load_delta, read_metadata, read_tensors
from anomalygpt.model.llm import LoraSettings
from anomalygpt.training.checkpoints import BEST, BestWeights, export_delta, record_run, require_shared
from tests.helpers import tiny_model
from tests.shared_data import ROOT

ALONE = Process(0, 0, 1, torch.device("cpu"))

# The list of specification 7.
IMAGE_DECODER = {f"image_decoder.fc.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
PROMPT_LEARNER = {f"prompt_learner.meta_net.{i}.{kind}" for i in (0, 3, 6, 9, 12, 15) for kind in ("weight", "bias")}
PROMPT_LEARNER |= {"prompt_learner.base_prompts"}
PANDAGPT = {"llama_proj.weight", "llama_proj.bias"} | {
    f"llama_model.base_model.model.model.layers.{layer}.self_attn.{letter}_proj.lora_{side}.default.weight"
    for layer in range(2)
    for letter in "qkvo"
    for side in "AB"
}


@pytest.fixture(scope="module")
def model() -> AnomalyGPT:
    """The paper's parts, thin."""
    return tiny_model(lora=LoraSettings(rank=2))


def config(parts: str) -> ExperimentConfig:
    return load_config("imagebind_vicuna7b", [f"training.trainable={parts}", "seed=7"])


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ("[image_decoder, prompt_learner]", IMAGE_DECODER | PROMPT_LEARNER),
        ("[image_decoder, prompt_learner, llama_proj, lora]", IMAGE_DECODER | PROMPT_LEARNER | PANDAGPT),
    ],
)
def test_the_delta_has_the_released_names_in_half_precision(model, tmp_path, parts, names):
    export_delta(model, config(parts), tmp_path, ALONE)
    plain = torch.load(tmp_path / "pytorch_model.pt", weights_only=True)
    assert type(plain) is dict
    assert set(plain) == names
    assert {(type(value), value.dtype) for value in plain.values()} == {(torch.Tensor, torch.float16)}
    state = model.state_dict()
    assert all(torch.equal(value, state[name].half()) for name, value in plain.items())


def test_both_files_hold_the_same_and_ours_carries_its_config(model, tmp_path):
    parts = "[image_decoder, prompt_learner, llama_proj, lora]"
    ours = export_delta(model, config(parts), tmp_path, ALONE)
    tensors, others = read_tensors(ours), read_tensors(tmp_path / "pytorch_model.pt")
    assert all(torch.equal(tensors[name], others[name]) for name in others)
    assert tensors.keys() == others.keys()
    inside = yaml.safe_load(read_metadata(ours)["config"])
    assert ExperimentConfig.model_validate(inside) == config(parts)


def test_the_delta_fits_a_model_that_was_not_trained(model, tmp_path):
    export_delta(model, config("[image_decoder, prompt_learner]"), tmp_path, ALONE)
    fresh = tiny_model(seed=1)
    load_delta(fresh, tmp_path / "pytorch_model.pt", ["image_decoder", "prompt_learner"])
    assert torch.equal(fresh.prompt_learner.base_prompts, model.prompt_learner.base_prompts.half().float())


def test_the_plain_file_names_nothing_but_torchs_tensors(model, tmp_path):
    """Whoever unpickles it the old way, as the released code does, needs no module of ours."""
    export_delta(model, config("[image_decoder, prompt_learner]"), tmp_path, ALONE)
    with zipfile.ZipFile(tmp_path / "pytorch_model.pt") as archive:
        [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        operations = list(pickletools.genops(archive.read(name)))
    wanted = {argument for operation, argument, _ in operations if operation.name in ("GLOBAL", "STACK_GLOBAL")}
    assert wanted == {"torch._utils _rebuild_tensor_v2", "torch HalfStorage", "collections OrderedDict"}


def test_another_rank_writes_nothing(model, tmp_path):
    export_delta(model, config("[image_decoder]"), tmp_path, Process(1, 1, 2, torch.device("cpu")))
    assert not list(tmp_path.iterdir())


def test_a_run_that_can_not_write_says_so_in_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match=r"file.run: can't be written .* choose another training.output"):
        record_run(config("[image_decoder]"), blocked / "run")


def test_a_delta_is_as_large_as_its_tensors_in_half_precision(model, tmp_path):
    path: Path = export_delta(model, config("[image_decoder, prompt_learner]"), tmp_path, ALONE)
    numbers = sum(torch.Size(shape).numel() for shape in file_shapes(path).values())
    for file in (path, tmp_path / "pytorch_model.pt"):
        assert 2 * numbers < os.path.getsize(file) < 2 * numbers + 20_000


# Two processes, each with a folder of its own, as on two machines without a common file system.
APART = """
import sys
from pathlib import Path
from anomalygpt.errors import user_errors
from anomalygpt import distributed
from anomalygpt.training.checkpoints import CONFIG, require_shared

process = distributed.start("cpu")
folder = Path(sys.argv[1]) / (str(process.rank) if sys.argv[2] == "apart" else "one")
folder.mkdir(exist_ok=True)
if process.is_main:
    (folder / CONFIG).touch()
with user_errors():
    require_shared(folder)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("apart", 1), ("together", 0)])
def test_machines_that_do_not_share_the_runs_folder_are_told_at_the_start(tmp_path, how, code):
    script = tmp_path / "apart.py"
    script.write_text(APART)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code"), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path), how], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == code, done.stderr[-2000:]
    assert ("has to lie on a file system that all machines of the run share" in done.stderr) == (how == "apart")


def test_a_single_process_shares_with_nobody(model, tmp_path):
    record_run(config("[image_decoder]"), tmp_path)
    require_shared(tmp_path)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_decoder = nn.Linear(2, 1)


@pytest.fixture
def offered(tmp_path):
    """Offers losses, step after step, and says which one the file holds then."""

    def offer(*losses: float, resumed: bool = False) -> float | None:
        best = BestWeights(tmp_path, ALONE, resumed=resumed)
        for step, loss in enumerate(losses, start=1):
            best.offer(Decoder(), ["image_decoder"], step, loss)
        kept = read_metadata(tmp_path / BEST).get("validation_loss")
        return float(kept) if kept is not None else None

    return offer


def test_the_lowest_loss_is_kept(offered):
    assert offered(0.5, 0.3, 0.4) == 0.3


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_not_kept(offered, loss):
    assert offered(loss) is None
    assert offered(loss, 0.5, loss) == 0.5


def test_a_resumed_run_has_to_do_better_than_the_file(offered):
    offered(0.3)
    assert offered(0.4, resumed=True) == 0.3
    assert offered(0.2, resumed=True) == 0.2


def test_a_file_that_another_run_left_is_no_bar_to_a_new_one(offered):
    offered(0.3)
    assert offered(0.4) == 0.4


def test_what_could_not_be_written_is_no_bar(tmp_path, offered, caplog):
    blocked = tmp_path / BEST
    (blocked / "in the way").mkdir(parents=True)
    best = BestWeights(tmp_path, ALONE, resumed=True)
    best.offer(Decoder(), ["image_decoder"], 1, 0.3)
    assert "the run goes on" in caplog.text
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    best.offer(Decoder(), ["image_decoder"], 2, 0.4)
    assert read_metadata(blocked)["validation_loss"] == "0.400000"


def test_a_damaged_file_is_no_bar(tmp_path, offered):
    (tmp_path / BEST).write_bytes(b"damaged")
    assert offered(0.4, resumed=True) == 0.4
