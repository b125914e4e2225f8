"""Weight files: right ones load, wrong ones say in one line which file, what is wrong and what to do."""

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from anomalygpt.errors import UserError
from anomalygpt.model import checkpoint
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.build import SKIPPED, available
from anomalygpt.model.checkpoint import (
    CheckpointError,
    check_names,
    delta_name,
    delta_shapes,
    delta_tensors,
    load_delta,
    load_module,
    part_of,
    read_metadata,
    read_tensors,
    save_tensors,
    shapes_of,
)
from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.imagebind.imagebind import ImageBind
from anomalygpt.model.llm import LoraSettings, add_lora
from anomalygpt.model.prompt_ensemble import LearnedTextFeatures
from anomalygpt.model.prompt_learner import PromptLearner
from tests.helpers import TINY, llama_config
from tests.shared_data import ROOT

CPU = torch.device("cpu")
LAYERS = 2
WIDTHS = {"7B": 4096, "13B": 5120}
PANDAGPT = ["llama_proj", "lora"]


def refusal(load: Callable[..., object], *arguments: object) -> str:
    """The one line, meant for the user, with which a file is refused."""
    with pytest.raises(CheckpointError) as error:
        load(*arguments)
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)
    return str(error.value)


def released_imagebind() -> dict[str, tuple[int, ...]]:
    keys = json.loads((ROOT / "tests" / "parity" / "imagebind_huge_keys.json").read_text())
    return {name: tuple(shape) for name, shape in keys.items()}


def test_own_and_skipped_tensors_are_the_released_imagebind_file() -> None:
    released = released_imagebind()
    with torch.device("meta"):
        own = shapes_of(ImageBind().state_dict())
    assert own.items() <= released.items() and len(released) == 1311
    check_names(own, released, Path("imagebind_huge.pth"), SKIPPED["imagebind"])
    assert not [name for name in own if re.match(SKIPPED["imagebind"], name)]


def thin_imagebind() -> ImageBind:
    with torch.device("meta"):
        return ImageBind(replace(TINY, joint_width=1024))


@pytest.fixture(scope="module")
def imagebind_tensors() -> dict[str, Tensor]:
    """The names of imagebind_huge.pth; our towers thin, the skipped ones as they are released, on one shared byte."""
    torch.manual_seed(0)
    others = {name: shape for name, shape in released_imagebind().items() if re.match(SKIPPED["imagebind"], name)}
    skipped = {name: torch.zeros(()).expand(shape) for name, shape in others.items()}
    return skipped | {name: torch.randn(value.shape) for name, value in thin_imagebind().state_dict().items()}


def load_imagebind(path: Path, dtype: torch.dtype = torch.float32) -> ImageBind:
    model = thin_imagebind()
    load_module(model, path, CPU, dtype, SKIPPED["imagebind"])
    return model.eval()


@pytest.mark.parametrize(
    ("dtype", "zipped"),
    [(torch.float32, True), (torch.float16, True), (torch.float32, False)],
    ids=["float32", "float16", "as torch < 1.6 wrote it"],
)
@torch.inference_mode()
def test_imagebind_file_loads_and_its_other_modalities_stay_on_disk(imagebind_tensors, tmp_path, dtype, zipped) -> None:
    path = tmp_path / "imagebind_huge.pth"
    torch.save(imagebind_tensors, path, _use_new_zipfile_serialization=zipped)
    model = load_imagebind(path, dtype)
    for name, value in model.state_dict().items():
        assert torch.equal(value, imagebind_tensors[name].to(dtype)), name
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    assert model.encode_image(torch.randn(1, 3, 224, 224, dtype=dtype)).embedding.shape == (1, 1024)
    assert model.encode_text(["a photo of a screw."]).shape == (1, 1024)


@pytest.mark.parametrize("kept", [0, 100, 10**6])
def test_truncated_file_is_named_as_damaged(imagebind_tensors: dict[str, Tensor], tmp_path: Path, kept: int) -> None:
    path = tmp_path / "imagebind_huge.pth"
    torch.save(imagebind_tensors, path)
    path.write_bytes(path.read_bytes()[:kept])
    text = refusal(load_imagebind, path)
    assert str(path) in text
    assert "damaged or was not fully downloaded" in text


def test_missing_tensor_and_wrong_shape_are_named(imagebind_tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path, name = tmp_path / "imagebind_huge.pth", "modality_trunks.vision.blocks.2.mlp.fc1.bias"
    torch.save({key: value for key, value in imagebind_tensors.items() if key != name}, path)
    text = refusal(load_imagebind, path)
    assert f"tensors missing ({name})" in text
    assert text.endswith("`python check_weights.py` says where it comes from.")
    assert f"an ImageBind checkpoint with {len(imagebind_tensors) - 1} tensors" in text
    torch.save({**imagebind_tensors, name: torch.zeros(1024, 7)}, path)
    shape = tuple(imagebind_tensors[name].shape)
    assert f"{name} is (1024, 7), expected {shape}" in refusal(load_imagebind, path)


class Trap(str):
    """A path; unpickled without care, it makes a folder there."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self),)


@pytest.mark.parametrize("name", ["delta.pt", "delta.bin"])
def test_code_in_a_file_is_never_run(tmp_path: Path, name: str) -> None:
    trap, sprung = tmp_path / name, tmp_path / "sprung"
    torch.save({"llama_proj.weight": torch.zeros(1), "extra": Trap(sprung)}, trap)
    assert "never loaded" in refusal(read_tensors, trap)
    trap.write_bytes(pickle.dumps(Trap(sprung)))
    assert refusal(read_tensors, trap)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b"hello " * 99, bytes(4096), b""],
    ids=["a web page", "a pointer of Git LFS", "text", "zeros", "nothing"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_file_of_another_kind_is_an_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"delta{suffix}"
    path.write_bytes(content)
    text = refusal(read_tensors, path)
    assert text.startswith(f"{path}: ")
    assert ("not a weight file but " in text) == bool(content.strip(b"\0"))


def test_folder_nothing_or_a_damaged_file_is_called_so(tmp_path: Path) -> None:
    assert refusal(read_tensors, tmp_path) == f"{tmp_path}: this is a folder, a file was expected"
    assert refusal(read_tensors, tmp_path / "delta.pt") == f"{tmp_path / 'delta.pt'}: no such file"
    (tmp_path / "delta.pt").write_bytes(b"hello \xff")  # unpickling it raises KeyError(101)
    assert refusal(read_tensors, tmp_path / "delta.pt").endswith("(KeyError: 101)")


def test_what_to_do_about_an_absent_file_depends_on_where_it_belongs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    text = refusal(available, "runs/train_compact_1_map/model.safetensors", "deltas")
    assert "python train.py --config train_compact_1_map; or" in text and text.endswith("(deltas)")
    assert text.startswith(f"{tmp_path / 'runs/train_compact_1_map/model.safetensors'}: not there")
    for file in ("runs/mine/model.safetensors", "code/ckpt/train_mvtec/pytorch_model.pt"):
        assert "as pretrained_ckpt/README.md says" in refusal(available, file, "deltas")


@pytest.mark.parametrize(
    ("content", "found"), [([1], "a list"), ({"model": {}, "step": 3}, "one with model (dict), step (int)")]
)
def test_file_with_more_than_named_tensors(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "state.pt")
    assert found in refusal(read_tensors, tmp_path / "state.pt")


@pytest.mark.parametrize(
    "nested",
    [
        lambda tensors: {"module": tensors, "global_steps": 3, "lr_scheduler": {}},  # DeepSpeed
        lambda tensors: {"state_dict": {f"model.{name}": value for name, value in tensors.items()}, "epoch": 1},
        lambda tensors: {"model_state_dict": {f"module.{name}": value for name, value in tensors.items()}},
    ],
)
def test_tensors_that_a_training_program_nested_are_found(tmp_path: Path, nested) -> None:
    tensors = {"llama_proj.weight": torch.ones(2, 3), "states.x": torch.zeros(1)}
    torch.save(nested(tensors), tmp_path / "state.pt")
    found = read_tensors(tmp_path / "state.pt")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def released_model(size: str) -> AnomalyGPT:
    """A model of the released width with few, thin layers, all on the meta device but for what a delta fills."""
    width = WIDTHS[size]
    with torch.device("meta"):
        llm = LlamaForCausalLM(llama_config(64, width, LAYERS, intermediate_size=8, num_attention_heads=32))
        parts = ImageDecoder(1280, 1024, 4), PromptLearner(width), add_lora(llm, LoraSettings())
        model = AnomalyGPT(nn.Module(), lambda _: torch.empty(0), *parts, nn.Linear(1024, width))  # type: ignore[arg-type]
    for name, parameter in list(model.named_parameters()):
        if part_of(name) in PANDAGPT:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(torch.zeros(parameter.shape)))
    return model


def pandagpt_delta(size: str, *, adapter: str = ".default", prefix: str = "") -> dict[str, Tensor]:
    """A PandaGPT delta with the tensor names of specification 7."""
    width, rank = WIDTHS[size], 32
    tensors = {"llama_proj.weight": torch.randn(width, 1024), "llama_proj.bias": torch.randn(width)}
    for layer in range(LAYERS):
        for projection in "qkvo":
            lora = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{projection}_proj.lora_"
            tensors[f"{lora}A{adapter}.weight"] = torch.randn(rank, width)
            tensors[f"{lora}B{adapter}.weight"] = torch.randn(width, rank)
    return {prefix + name: value.half() for name, value in tensors.items()}


@pytest.mark.parametrize("size", ["7B", "13B"])
@pytest.mark.parametrize("adapter", [".default", ""], ids=["today's names", "older names"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "data parallel"])
def test_pandagpt_delta_loads_whole(tmp_path: Path, size: str, adapter: str, prefix: str) -> None:
    torch.manual_seed(1)
    delta = pandagpt_delta(size, adapter=adapter, prefix=prefix)
    torch.save(delta, tmp_path / "pytorch_model.pt")
    model = released_model(size)
    assert load_delta(model, tmp_path / "pytorch_model.pt", PANDAGPT) == set(PANDAGPT)
    state = model.state_dict()
    for name, value in delta.items():
        assert torch.equal(state[delta_name(name)], value.float()), name


LAST = f"llama_model.base_model.model.model.layers.{LAYERS - 1}.self_attn.o_proj.lora_B.default.weight"
WRONG_DELTAS = {
    "another size": (
        lambda: pandagpt_delta("13B"),
        PANDAGPT,
        f"{2 + 8 * LAYERS} of another shape",
        "layers.0.self_attn.q_proj.lora_A.default.weight is (32, 5120), expected (32, 4096)",
        "This looks like an upstream PandaGPT delta for 13B: llama_proj is 5120 wide.",
        "It should hold llama_proj, lora for this model; check the path in the config.",
    ),
    "PandaGPT's in place of AnomalyGPT's": (
        lambda: pandagpt_delta("7B"),
        ["image_decoder", "prompt_learner"],
        "tensors missing (image_decoder.fc.0.bias",
        "an upstream PandaGPT delta for 7B",
    ),
    "without one adapter": (
        lambda: {name: value for name, value in pandagpt_delta("7B").items() if name != LAST},
        PANDAGPT,
        f"1 of {2 + 8 * LAYERS} tensors missing ({LAST})",
    ),
    "with a foreign tensor": (
        lambda: {**pandagpt_delta("7B"), "llama_model.lm_head.weight": torch.zeros(2)},
        PANDAGPT,
        "1 unexpected (llama_model.lm_head.weight)",
    ),
}


@pytest.mark.parametrize("case", WRONG_DELTAS)
def test_wrong_delta_is_recognised_and_nothing_of_it_is_loaded(tmp_path: Path, case: str) -> None:
    make, required, *words = WRONG_DELTAS[case]
    path, model = tmp_path / "pytorch_model.pt", released_model("7B")
    torch.save(make(), path)
    text = refusal(load_delta, model, path, required)
    assert text.startswith(f"{path}: not the expected weights: ")
    assert all(word in text for word in words), text
    assert not model.state_dict()["llama_proj.weight"].any()


class SmallParts(nn.Module):
    """The parts of a small model that a delta fills."""

    def __init__(self) -> None:
        super().__init__()
        self.image_decoder = ImageDecoder(6, 4, 4)
        self.prompt_learner = PromptLearner(8)
        self.states = LearnedTextFeatures(4)
        self.llama_proj = nn.Linear(4, 8)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.pt"])
@pytest.mark.parametrize("parts", [["image_decoder", "prompt_learner"], ["image_decoder", "states", "llama_proj"]])
def test_delta_makes_a_round_trip_in_half_precision(tmp_path: Path, name: str, parts: list[str]) -> None:
    torch.manual_seed(2)
    source, target = SmallParts(), SmallParts()
    tensors = delta_tensors(source, parts, torch.float16)
    save_tensors(tensors, tmp_path / name, {"config": "name: compact"})
    assert {part_of(key) for key in tensors} == set(parts)
    expected = {key: value.clone() for key, value in target.state_dict().items()}
    expected |= {key: value.half().float() for key, value in source.state_dict().items() if part_of(key) in parts}
    assert load_delta(target, tmp_path / name, parts) == set(parts)
    for key, value in target.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert read_metadata(tmp_path / name) == ({"config": "name: compact"} if name.endswith("tensors") else {})


def test_model_without_some_parts_leaves_them_in_the_file(tmp_path: Path) -> None:
    source, maps_only = SmallParts(), SmallParts()
    del maps_only.prompt_learner, maps_only.llama_proj
    save_tensors(delta_tensors(source, checkpoint.PARTS), tmp_path / "model.safetensors")
    loaded = load_delta(maps_only, tmp_path / "model.safetensors", ["image_decoder"], ["prompt_learner", "llama_proj"])
    assert loaded == {"image_decoder", "states"}
    assert torch.equal(maps_only.states.states, source.states.states)


def test_delta_never_holds_frozen_weights_of_the_language_model() -> None:
    names = delta_shapes(released_model("7B"), ["lora"])
    assert len(names) == 8 * LAYERS
    assert all(".lora_" in name for name in names)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.pt"])
def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, name: str, error, monkeypatch) -> None:
    path = tmp_path / name
    save_tensors({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def half_written(_: object, place: str, **__: object) -> None:
        Path(place).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    monkeypatch.setattr(checkpoint.torch, "save", half_written)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        save_tensors({"a": torch.zeros(3)}, path)
    assert "can't be written (No space left" in str(caught.value) or not isinstance(error, OSError)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]
