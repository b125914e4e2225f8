"""Weight files: right ones load, wrong ones say in one line which file, what is wrong and what to do."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from anomalygpt.errors import UserError
from anomalygpt.model import checkpoint
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import (
    PARTS,
    CheckpointError,
    absent_file,
    delta_name,
    delta_shapes,
    delta_tensors,
    file_shapes,
    load_delta,
    load_module,
    part_of,
    read_metadata,
    read_tensors,
    save_tensors,
)
from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.imagebind.imagebind import ImageBind, ImageBindSize
from anomalygpt.model.imagebind.released import skipped_shapes
from anomalygpt.model.llm import LoraSettings, add_lora
from anomalygpt.model.prompt_ensemble import LearnedStates
from anomalygpt.model.prompt_learner import PromptLearner

THIN = ImageBindSize(vision_width=32, vision_depth=4, vision_heads=2, text_width=16, text_depth=1, text_heads=2)
CPU = torch.device("cpu")
LAYERS = 2
WIDTHS = {"7B": 4096, "13B": 5120}


def message(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    """The error's text; it is the user's to mend, and one line."""
    text = str(error.value)
    assert isinstance(error.value, UserError)
    assert "\n" not in text
    return text


def thin_imagebind() -> ImageBind:
    with torch.device("meta"):
        return ImageBind(THIN)


@pytest.fixture(scope="module")
def imagebind_tensors() -> dict[str, Tensor]:
    """The names of imagebind_huge.pth; our towers thin, the skipped ones as they are released, on one shared byte."""
    torch.manual_seed(0)
    skipped = {name: torch.zeros(()).expand(shape) for name, shape in skipped_shapes().items()}
    return skipped | {name: torch.randn(value.shape) for name, value in thin_imagebind().state_dict().items()}


@pytest.fixture(scope="module")
def imagebind_file(imagebind_tensors: Mapping[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imagebind") / "imagebind_huge.pth"
    torch.save(dict(imagebind_tensors), path)
    return path


def load_imagebind(path: Path, dtype: torch.dtype = torch.float32) -> ImageBind:
    model = thin_imagebind()
    load_module(model, path, CPU, dtype, skipped_shapes(), "Get the complete imagebind_huge.pth.")
    return model


def speaking_model(size: str, *, joint: int = 1024) -> AnomalyGPT:
    """A model of the released width with few, thin layers, all on the meta device but for what a delta fills."""
    width = WIDTHS[size]
    with torch.device("meta"):
        llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64,
                hidden_size=width,
                intermediate_size=8,
                num_hidden_layers=LAYERS,
                num_attention_heads=32,
            )
        )
        llm = add_lora(llama, LoraSettings())
        model = AnomalyGPT(
            nn.Module(),  # type: ignore[arg-type]
            lambda _: torch.empty(0),
            ImageDecoder(1280, joint, 4),
            PromptLearner(width),
            llm,
            nn.Linear(joint, width),
        )
    for parameter_name, parameter in list(model.named_parameters()):
        part = part_of(parameter_name)
        if part in ("llama_proj", "lora"):
            owner, _, leaf = parameter_name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(torch.zeros(parameter.shape)))
    return model


def pandagpt_delta(size: str, *, adapter: str = ".default", prefix: str = "") -> dict[str, Tensor]:
    """A PandaGPT delta as specification 7 names its tensors."""
    width, rank = WIDTHS[size], 32
    tensors = {"llama_proj.weight": torch.randn(width, 1024), "llama_proj.bias": torch.randn(width)}
    for layer in range(LAYERS):
        for projection in "qkvo":
            lora = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{projection}_proj.lora_"
            tensors[f"{lora}A{adapter}.weight"] = torch.randn(rank, width)
            tensors[f"{lora}B{adapter}.weight"] = torch.randn(width, rank)
    return {prefix + name: value.half() for name, value in tensors.items()}


# -- the encoder's file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_imagebind_file_loads_and_its_other_modalities_stay_on_disk(
    imagebind_file: Path, imagebind_tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    model = load_imagebind(imagebind_file, dtype)
    for name, value in model.state_dict().items():
        assert torch.equal(value, imagebind_tensors[name].to(dtype)), name
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])


def test_loaded_imagebind_runs(imagebind_file: Path) -> None:
    with torch.inference_mode():
        model = load_imagebind(imagebind_file).eval()
        assert model.encode_image(torch.randn(1, 3, 224, 224)).embedding.shape == (1, 1024)
        assert model.encode_text(["a photo of a screw."]).shape == (1, 1024)


def test_imagebind_file_of_old_pytorch_loads(imagebind_tensors: Mapping[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "imagebind_huge.pth"
    torch.save(dict(imagebind_tensors), path, _use_new_zipfile_serialization=False)
    name = "modality_heads.vision.2.weight"
    assert torch.equal(load_imagebind(path).state_dict()[name], imagebind_tensors[name])


@pytest.mark.parametrize("kept", [0, 100, 10**6])
def test_truncated_file_is_named_as_damaged(imagebind_file: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "imagebind_huge.pth"
    path.write_bytes(imagebind_file.read_bytes()[:kept])
    with pytest.raises(CheckpointError) as error:
        load_imagebind(path)
    assert str(path) in message(error)
    assert "damaged or was not fully downloaded" in message(error)


@pytest.mark.parametrize("name", ["modality_trunks.vision.blocks.2.mlp.fc1.bias", "modality_heads.audio.2.weight"])
def test_missing_tensor_is_named_even_if_it_would_be_skipped(
    imagebind_tensors: Mapping[str, Tensor], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "imagebind_huge.pth"
    torch.save({key: value for key, value in imagebind_tensors.items() if key != name}, path)
    with pytest.raises(CheckpointError) as error:
        load_imagebind(path)
    text = message(error)
    assert f"1 of {len(imagebind_tensors)} tensors missing ({name})" in text
    assert text.endswith("Get the complete imagebind_huge.pth.")
    assert f"an ImageBind checkpoint with {len(imagebind_tensors) - 1} tensors" in text


def test_wrong_shape_is_told_with_both_sizes(imagebind_tensors: Mapping[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "imagebind_huge.pth"
    torch.save({**imagebind_tensors, "modality_heads.vision.2.weight": torch.zeros(1024, 7)}, path)
    with pytest.raises(CheckpointError) as error:
        load_imagebind(path)
    assert "modality_heads.vision.2.weight is 1024x7, expected 1024x32" in message(error)


# -- what is no weight file -----------------------------------------------------------------------------------------


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["delta.pt", "delta.bin"])
def test_code_in_a_file_is_never_run(tmp_path: Path, name: str) -> None:
    trap, sprung = tmp_path / name, tmp_path / "sprung"
    torch.save({"llama_proj.weight": torch.zeros(1), "extra": Trap(sprung)}, trap)
    with pytest.raises(CheckpointError) as error:
        read_tensors(trap)
    assert "never loaded" in message(error)
    assert not sprung.exists()
    trap.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(CheckpointError):
        read_tensors(trap)
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
    for read in (read_tensors, file_shapes):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert message(error).startswith(f"{path}: ")
        assert ("not a weight file but text, which begins with" in message(error)) == bool(content.strip(b"\0"))


def test_damaged_file_gives_a_reason_in_words(tmp_path: Path) -> None:
    (tmp_path / "delta.pt").write_bytes(b"hello \xff")  # unpickling it raises KeyError(101)
    with pytest.raises(CheckpointError) as error:
        read_tensors(tmp_path / "delta.pt")
    assert message(error).endswith("(KeyError)")


def test_folder_in_place_of_a_file_is_called_one(tmp_path: Path) -> None:
    for read in (read_tensors, file_shapes):
        with pytest.raises(CheckpointError) as error:
            read(tmp_path)
        assert message(error) == f"{tmp_path}: this is a folder, a file was expected"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("runs/first/model.safetensors", "to its end: python train.py --config first; or"),
        ("runs/mine/model.safetensors", "Train the experiment that writes it first, to its end; or"),
        ("pretrained_ckpt/pandagpt_ckpt/7b/pytorch_model.pt", "as pretrained_ckpt/README.md says"),
        ("code/ckpt/train_mvtec/pytorch_model.pt", "as pretrained_ckpt/README.md says"),
        ("elsewhere/model.safetensors", "not there. The setting deltas names it"),
        ("runs", "not there. The setting deltas names it"),
    ],
)
def test_what_to_do_about_an_absent_file_depends_on_where_it_belongs(tmp_path: Path, file: str, words: str) -> None:
    said = str(absent_file(tmp_path / file, "deltas", tmp_path, ["first", "second"]))
    assert said.startswith(f"{tmp_path / file}: not there. ") and words in said and "\n" not in said
    assert ("README" in words) == ("README" in said)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        read_tensors(tmp_path / "delta.pt")
    assert message(error) == f"{tmp_path / 'delta.pt'}: no such file"


@pytest.mark.parametrize(
    ("content", "found"), [([1], "a list"), ({"model": {}, "step": 3}, "one with model (dict), step (int)")]
)
def test_file_with_more_than_named_tensors(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(CheckpointError) as error:
        read_tensors(tmp_path / "state.pt")
    assert found in message(error)


# -- deltas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["7B", "13B"])
@pytest.mark.parametrize("adapter", [".default", ""], ids=["today's names", "older names"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "data parallel"])
def test_pandagpt_delta_loads_whole(tmp_path: Path, size: str, adapter: str, prefix: str) -> None:
    torch.manual_seed(1)
    delta = pandagpt_delta(size, adapter=adapter, prefix=prefix)
    torch.save(delta, tmp_path / "pytorch_model.pt")
    model = speaking_model(size)
    assert load_delta(model, tmp_path / "pytorch_model.pt", ["llama_proj", "lora"]) == ("llama_proj", "lora")
    state = model.state_dict()
    for name, value in delta.items():
        assert torch.equal(state[delta_name(name)], value.float()), name


def test_13b_delta_given_to_a_7b_model_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.pt"
    torch.save(pandagpt_delta("13B"), path)
    with pytest.raises(CheckpointError) as error:
        load_delta(speaking_model("7B"), path, ["llama_proj", "lora"])
    text = message(error)
    assert text.startswith(f"{path}: not the expected weights: ")
    assert f"{2 + 8 * LAYERS} of another shape" in text
    assert "layers.0.self_attn.q_proj.lora_A.default.weight is 32x5120, expected 32x4096" in text
    assert "This looks like an upstream PandaGPT delta for 13B: llama_proj is 5120 wide." in text
    assert "It should hold llama_proj, lora for this model; check the path in the config." in text


def test_pandagpt_delta_in_place_of_anomalygpts(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.pt"
    torch.save(pandagpt_delta("7B"), path)
    with pytest.raises(CheckpointError) as error:
        load_delta(speaking_model("7B"), path, ["image_decoder", "prompt_learner"])
    assert "tensors missing (image_decoder.fc.0.bias" in message(error)
    assert "an upstream PandaGPT delta for 7B" in message(error)


def test_delta_without_one_adapter_is_refused_whole(tmp_path: Path) -> None:
    delta = pandagpt_delta("7B")
    lost = delta.popitem()[0]
    torch.save(delta, tmp_path / "pytorch_model.pt")
    model = speaking_model("7B")
    with pytest.raises(CheckpointError) as error:
        load_delta(model, tmp_path / "pytorch_model.pt", ["llama_proj", "lora"])
    assert f"1 of {2 + 8 * LAYERS} tensors missing ({lost})" in message(error)
    assert not model.state_dict()["llama_proj.weight"].any()  # nothing was loaded


def test_delta_with_a_stranger_is_refused(tmp_path: Path) -> None:
    torch.save({**pandagpt_delta("7B"), "llama_model.lm_head.weight": torch.zeros(2)}, tmp_path / "pytorch_model.pt")
    with pytest.raises(CheckpointError) as error:
        load_delta(speaking_model("7B"), tmp_path / "pytorch_model.pt", ["llama_proj", "lora"])
    assert "1 unexpected (llama_model.lm_head.weight)" in message(error)


class Drawer(nn.Module):
    """The parts of a small model that a delta fills."""

    def __init__(self) -> None:
        super().__init__()
        self.image_decoder = ImageDecoder(6, 4, 4)
        self.prompt_learner = PromptLearner(8)
        self.states = LearnedStates(4)
        self.llama_proj = nn.Linear(4, 8)


def test_anomalygpt_delta_has_the_released_names(tmp_path: Path) -> None:
    torch.manual_seed(2)
    source, target = Drawer(), Drawer()
    tensors = delta_tensors(source, ["image_decoder", "prompt_learner"])
    expected = [f"image_decoder.fc.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    expected += [f"prompt_learner.meta_net.{i}.{kind}" for i in (0, 3, 6, 9, 12, 15) for kind in ("weight", "bias")]
    assert sorted(tensors) == sorted([*expected, "prompt_learner.base_prompts"])
    torch.save(tensors, tmp_path / "pytorch_model.pt")
    load_delta(target, tmp_path / "pytorch_model.pt", ["image_decoder", "prompt_learner"])
    for name, value in tensors.items():
        assert torch.equal(target.state_dict()[name], value)
    assert not torch.equal(target.llama_proj.weight, source.llama_proj.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.pt"])
def test_compact_delta_makes_a_round_trip_in_half_precision(tmp_path: Path, name: str) -> None:
    parts = ["image_decoder", "prompt_learner", "states", "llama_proj"]
    source, target = Drawer(), Drawer()
    save_tensors(delta_tensors(source, parts, torch.float16), tmp_path / name, {"config": "name: compact"})
    assert set(load_delta(target, tmp_path / name, parts)) == set(parts)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value.half().float()), key
    assert read_metadata(tmp_path / name) == ({"config": "name: compact"} if name.endswith("tensors") else {})


def test_silent_model_takes_its_parts_and_leaves_the_others_in_the_file(tmp_path: Path) -> None:
    source, silent = Drawer(), Drawer()
    del silent.prompt_learner, silent.llama_proj
    save_tensors(delta_tensors(source, PARTS), tmp_path / "model.safetensors")
    loaded = load_delta(silent, tmp_path / "model.safetensors", ["image_decoder"], ["prompt_learner", "llama_proj"])
    assert loaded == ("image_decoder", "states")
    assert torch.equal(silent.states.states, source.states.states)


def test_delta_never_holds_frozen_weights_of_the_language_model() -> None:
    names = delta_shapes(speaking_model("7B"), ["lora"])
    assert len(names) == 8 * LAYERS
    assert all(".lora_" in name for name in names)


# -- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.pt"])
def test_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    save_tensors({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def half_written(_: object, place: str, **__: object) -> None:
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    monkeypatch.setattr(checkpoint.torch, "save", half_written)
    with pytest.raises(CheckpointError) as error:
        save_tensors({"a": torch.zeros(3)}, path)
    assert "could not be written" in message(error)
    assert "No space left" in message(error)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_tensors({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_can_not_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(CheckpointError) as error:
        save_tensors({"a": torch.zeros(1)}, tmp_path / "runs" / "model.safetensors")
    assert "could not be written" in message(error)
