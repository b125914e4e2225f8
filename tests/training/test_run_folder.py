"""What a run leaves in its folder: the exported delta, the best weights, and its settings."""

import pytest
import torch
import yaml
from torch import nn

from anomalygpt.config.load import load_config
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.distributed import Process
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import load_delta, read_metadata, read_tensors
from anomalygpt.model.llm import LoraSettings
from anomalygpt.training.checkpoints import BEST, export_delta, keep_best
from tests.helpers import tiny_model

ALONE = Process(0, 1, torch.device("cpu"))

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
    path = export_delta(model, config(parts), tmp_path, ALONE)
    plain = torch.load(tmp_path / "pytorch_model.pt", weights_only=True)
    assert type(plain) is dict
    assert set(plain) == names
    assert {(type(value), value.dtype) for value in plain.values()} == {(torch.Tensor, torch.float16)}
    state = model.state_dict()
    assert all(torch.equal(value, state[name].half()) for name, value in plain.items())
    ours = read_tensors(path)
    assert ours.keys() == names
    assert all(torch.equal(value, ours[name]) for name, value in plain.items())
    assert ExperimentConfig.model_validate(yaml.safe_load(read_metadata(path)["config"])) == config(parts)


def test_the_delta_of_rank_0_fits_a_model_that_was_not_trained(model, tmp_path):
    export_delta(model, config("[image_decoder]"), tmp_path, Process(1, 2, torch.device("cpu")))
    assert not list(tmp_path.iterdir()), "another rank writes nothing"
    export_delta(model, config("[image_decoder, prompt_learner]"), tmp_path, ALONE)
    fresh = tiny_model(seed=1)
    load_delta(fresh, tmp_path / "pytorch_model.pt", ["image_decoder", "prompt_learner"])
    assert torch.equal(fresh.prompt_learner.base_prompts, model.prompt_learner.base_prompts.half().float())


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_decoder = nn.Linear(2, 1)


def test_the_tensors_of_the_lowest_loss_are_kept(tmp_path):
    kept = []
    for step, loss in enumerate((0.5, 0.3, 0.4, 0.2), start=1):
        keep_best(Decoder(), ["image_decoder"], tmp_path, step, loss, ALONE)
        kept.append(float(read_metadata(tmp_path / BEST)["validation_loss"]))
    assert kept == [0.5, 0.3, 0.3, 0.2]
