"""Language model folders as they are found, and how an answer is generated and stopped (specification 6)."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from anomalygpt.errors import UserError
from anomalygpt.model import llm as language_model
from anomalygpt.model.chat import END_OF_TURN, answer_text
from anomalygpt.model.checkpoint import CheckpointError
from anomalygpt.model.generation import turn_tokens
from anomalygpt.model.llm import (
    GIB,
    LoraSettings,
    add_lora,
    fitting_precision,
    load_llm,
    placement,
    weight_bytes,
)
from anomalygpt.model.tokenizer import (
    JsonTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from tests.helpers import llama_config, tiny_llama, write_llm
from tests.shared_data import ROOT, WEIGHTS, needs_weights, shared

CPU = torch.device("cpu")


def write_folder(
    folder: Path, llama: LlamaForCausalLM, layout: str, tensors: Mapping[str, Tensor] | None = None, **changes: Any
) -> Path:
    """A model's folder: `layout` is single or sharded, .bin or .safetensors; shards are named as Vicuna's."""
    tensors, config = tensors or llama.state_dict(), copy.deepcopy(llama.config)
    config.update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    kind, _, suffix = layout.partition(" ")
    stem = "pytorch_model" if suffix == "bin" else "model"
    names = sorted(tensors)
    files = {f"{stem}-0000{n + 1}-of-00002.{suffix}": names[n::2] for n in range(2)}
    if kind == "single":
        files = {f"{stem}.{suffix}": names}
    else:
        weight_map = {key: file for file, keys in files.items() for key in keys}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, keys in files.items():
        part = {key: tensors[key].contiguous() for key in keys}
        torch.save(part, folder / file) if suffix == "bin" else save_file(part, folder / file, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "layout", [f"{kind} {suffix}" for kind in ("single", "sharded") for suffix in ("bin", "safetensors")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_layout_loads(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    llama = tiny_llama()
    frequencies = llama.model.rotary_emb.inv_freq.clone()
    loaded = load_llm(write_folder(tmp_path, llama.half(), layout), dtype, CPU)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    for name, value in llama.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype)), name
    assert torch.equal(loaded.model.rotary_emb.inv_freq, frequencies), "they stay float32"
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])


@pytest.mark.parametrize(("rows", "configured"), [(320, 321), (321, 320)])
def test_the_tensors_decide_how_many_rows_there_are(tmp_path: Path, rows: int, configured: int) -> None:
    folder = write_folder(tmp_path, tiny_llama(rows=rows), "sharded bin", vocab_size=configured)
    loaded = load_llm(folder, torch.float32, CPU)
    assert loaded.get_input_embeddings().num_embeddings == rows
    assert loaded.lm_head.out_features == rows


@pytest.mark.parametrize("carried", [True, False], ids=["with its output layer", "without"])
def test_tied_model_of_an_old_file_loads_with_and_without_its_output_layer(tmp_path: Path, carried: bool) -> None:
    llama = tiny_llama(tie_word_embeddings=True, rms_norm_eps=1e-3)
    tensors = {name: value.clone() for name, value in llama.state_dict().items() if carried or name != "lm_head.weight"}
    tensors |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}  # tolerated
    loaded = load_llm(write_folder(tmp_path, llama, "single bin", tensors), torch.float32, CPU)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert {norm.variance_epsilon for norm in (loaded.model.norm, loaded.model.layers[0].input_layernorm)} == {1e-3}


def test_safetensors_win_over_left_over_shards(tmp_path: Path) -> None:
    """As transformers has it: an index of .bin shards that are gone does not matter beside model.safetensors."""
    llama = tiny_llama()
    write_folder(tmp_path, llama, "sharded bin")
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    loaded = load_llm(write_folder(tmp_path, llama, "single safetensors"), torch.float32, CPU)
    assert torch.equal(loaded.lm_head.weight, llama.lm_head.weight)


def refused(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as error:
        load_llm(folder, torch.float32, CPU)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_truncated_or_missing_shard_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_llama(), "sharded safetensors")
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    text = refused(tmp_path)
    assert shard.name in text and "not fully downloaded" in text
    shard.unlink()
    assert f"1 of 2 weight shards are missing: {shard.name}" in refused(tmp_path)


def test_folder_without_weights_or_with_an_index_that_is_none(tmp_path: Path) -> None:
    llama_config().save_pretrained(tmp_path)
    assert "no weights there" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text("<html>")
    assert "cannot be read as an index of weight shards" in refused(tmp_path)


def test_wrong_width_and_missing_layers_are_reported_with_what_the_file_is(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_llama(width=64, layers=3), "single safetensors", hidden_size=32)
    text = refused(tmp_path)
    assert "model.embed_tokens.weight is (320, 64), expected (320, 32)" in text
    assert "This looks like a language model." in text
    tensors = {name: value for name, value in tiny_llama().state_dict().items() if "layers.1." not in name}
    write_folder(tmp_path, tiny_llama(), "single safetensors", tensors)
    assert "9 of 21 tensors missing (model.layers.1." in refused(tmp_path)


@pytest.mark.parametrize("content", [None, "not json", '{"model_type": "nothing_known"}'])
def test_folder_without_a_usable_config(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert "config.json" in refused(tmp_path)


MEASURE = """
import re, sys
from pathlib import Path
import torch
from transformers import LlamaForCausalLM
from anomalygpt.model.llm import load_llm
def memory(what):  # MiB; the peak that getrusage tells would begin with the parent's
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
load_llm(Path(sys.argv[1]), torch.float16, torch.device("cpu"))  # a small one: imports are not what is measured
before = memory("VmRSS")
load_llm(Path(sys.argv[2]), torch.float16, torch.device("cpu"))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_half_precision_loading_never_holds_a_float32_copy(tmp_path: Path) -> None:
    """About 200 MiB of half-precision weights in two shards; a float32 copy would be twice that, and come on top."""
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(llama_config(rows=32000, width=1024, layers=4, intermediate_size=2048))
    tensors = {name: torch.ones(value.shape, dtype=torch.half) for name, value in skeleton.state_dict().items()}
    size = sum(value.nbytes for value in tensors.values()) / 2**20
    large = write_folder(tmp_path / "large", skeleton, "sharded safetensors", tensors)
    small = write_folder(tmp_path / "small", tiny_llama(), "single safetensors")
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'code')!r})\n{MEASURE}"
    command = [sys.executable, "-c", script, str(small), str(large)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1]) < 1.3 * size + 20, size


def test_lora_stands_on_the_four_projections_of_each_layer_under_the_released_names() -> None:
    llm = add_lora(tiny_llama(), LoraSettings(rank=4))
    names = {name for name in llm.state_dict() if "lora_" in name}
    assert names == {
        f"base_model.model.model.layers.{layer}.self_attn.{projection}_proj.lora_{kind}.default.weight"
        for layer in range(2)
        for projection in "qkvo"
        for kind in "AB"
    }


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("foo",), "llm.lora.targets [foo]: expected linear layers of this language model, which are called q_proj"),
        (("q_proj", "foo"), "[foo]: expected"),  # PEFT would train the other one without a warning
        (("mlp",), "[mlp]: expected"),
        ((), "[]: expected"),
    ],
)
def test_lora_on_a_module_that_is_not_there_is_told_with_those_that_are(targets: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as error:
        add_lora(tiny_llama(), LoraSettings(targets=targets))
    assert words in str(error.value) and "down_proj" in str(error.value) and "\n" not in str(error.value)


def test_lora_of_a_half_precision_model_is_float32_and_runs() -> None:
    llm = add_lora(tiny_llama().half(), LoraSettings(rank=4)).eval()
    adapters = {p.dtype for name, p in llm.named_parameters() if "lora_" in name}
    others = {p.dtype for name, p in llm.named_parameters() if "lora_" not in name}
    assert (adapters, others) == ({torch.float32}, {torch.float16})
    with torch.no_grad():
        logits = llm(inputs_embeds=torch.randn(1, 3, 32).half()).logits
    assert logits.dtype == torch.float16
    assert logits.isfinite().all()


@pytest.mark.parametrize(("precision", "off"), [("8bit", 0.03), ("4bit", 0.3)])
def test_quantized_model_is_as_small_as_computed_and_answers_nearly_the_same(tmp_path, precision, off) -> None:
    pytest.importorskip("bitsandbytes")
    llama = tiny_llama(width=256, intermediate_size=512)
    folder, ids = write_folder(tmp_path, llama, "sharded safetensors"), torch.arange(3, 9)[None]
    llm = add_lora(load_llm(folder, torch.float32, CPU, precision), LoraSettings(rank=4)).eval()
    base = {name: value for name, value in llm.state_dict().items() if "lora_" not in name}
    with torch.device("meta"):
        planned = add_lora(LlamaForCausalLM(llama.config), LoraSettings(rank=4))
    # Each layer has a few hundred bytes of tables, too.
    assert sum(value.nbytes for value in base.values()) == pytest.approx(weight_bytes(planned, precision, 4), rel=0.03)
    with torch.inference_mode():
        expected, found = llama(ids).logits, llm(ids).logits
        assert 0 < (found - expected).norm() / expected.norm() < off


def test_gradients_through_a_4_bit_base_are_those_of_its_weights_also_after_evaluation(tmp_path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    llama = tiny_llama(width=64, intermediate_size=128)
    folder = write_folder(tmp_path, llama, "single safetensors")
    llm = load_llm(folder, torch.float32, CPU, "4bit", trains=True)
    for name, module in llm.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            dense = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            llama.get_submodule(name).weight.data = dense.detach().clone()
    embeds = torch.randn(1, 5, 64)

    def gradient(model: Any) -> Tensor:
        given = embeds.clone().requires_grad_()
        model.train()(inputs_embeds=given).logits.square().sum().backward()
        return given.grad

    before = gradient(llm)
    with torch.no_grad():
        llm.eval()(inputs_embeds=embeds)
    for found in (before, gradient(llm)):
        assert torch.allclose(found, gradient(llama), rtol=1e-3, atol=1e-4)


def test_precision_that_fits_the_free_memory_is_chosen_and_said(caplog, monkeypatch) -> None:
    with torch.device("meta"):
        llama = LlamaForCausalLM(llama_config(32000, 4096, 32, intermediate_size=11008, num_attention_heads=32))
    sizes = {each: weight_bytes(llama, each, 2) / GIB for each in ("full", "8bit", "4bit")}
    assert sizes == pytest.approx({"full": 12.55, "8bit": 6.53, "4bit": 3.60}, abs=0.01)
    monkeypatch.setattr(language_model, "find_spec", lambda name: name)  # where it is not installed, too
    for free, expected in ((24, "full"), (14, "full"), (12, "8bit"), (7, "4bit")):
        caplog.clear()
        assert fitting_precision(llama, torch.float16, free * GIB) == expected
        assert len(caplog.messages) == (expected != "full")
        assert all(f"in {expected} it is {sizes[expected]:.1f} (llm.precision)" in line for line in caplog.messages)
    monkeypatch.setattr(language_model, "find_spec", lambda name: None)
    assert fitting_precision(llama, torch.float16, 13 * GIB) == "full", "it is tried"
    with pytest.raises(UserError, match="pip install 'bitsandbytes"):
        placement(llama, torch.half, CPU, "4bit")


def recited(tokenizer: Tokenizer, script: Sequence[int], limit: int = 64) -> tuple[str, int]:
    """The answer of a model that writes a script, its last id over and over, and after how many steps it ended."""
    steps: list[int] = []

    def tokens() -> Iterator[int]:
        for step in range(limit):
            steps.append(step)
            yield script[min(step, len(script) - 1)]

    return answer_text([*turn_tokens(tokens(), tokenizer)], tokenizer), len(steps)


@pytest.fixture(scope="module", params=["llama", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "llama":
        return SentencePieceTokenizer(shared("parity/llama_tokenizer.model"))
    needs_weights("smollm2_135m_instruct")
    return load_tokenizer(WEIGHTS / "smollm2_135m_instruct")


def test_answer_ends_at_the_mark(tokenizer: Tokenizer) -> None:
    script = tokenizer.encode("No. Item #3 is fine." + END_OF_TURN + " Human: and the rest?")
    answer, steps = recited(tokenizer, script)
    assert answer == "No. Item #3 is fine."
    assert steps == script.index(2277) + 1 if isinstance(tokenizer, SentencePieceTokenizer) else steps < len(script)


@pytest.mark.parametrize("cut_by_length", [True, False])
def test_answer_that_is_cut_by_length_or_ended_by_eos_loses_nothing(tokenizer: Tokenizer, cut_by_length: bool) -> None:
    answer = tokenizer.encode("Yes, there is one #")
    script = answer if cut_by_length else [*answer, tokenizer.eos_id, *tokenizer.encode("rubbish")]
    found, steps = recited(tokenizer, script, limit=len(answer) if cut_by_length else 64)
    assert found == "Yes, there is one #"
    assert steps == len(answer) + (not cut_by_length)


@pytest.mark.parametrize("text", ["Yes.", "有异常，在左上角。", "crack 🔧 at 3 °C", "a  b", "two\nlines", "# é", ""])
def test_text_makes_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert bool(tokenizer.encode(text)) == bool(text), "the empty text has no ids"
    if isinstance(tokenizer, SentencePieceTokenizer):
        assert tokenizer.decode([*tokenizer.encode(text), 32000]) == text, "Vicuna's padding row is no text"


def test_plain_tokeniser_is_that_of_transformers(tmp_path: Path) -> None:
    write_llm(tmp_path)
    folders = [tmp_path, WEIGHTS / "smollm2_135m_instruct"]
    (tmp_path / "older").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text().replace('"</s>"', '{"content": "</s>", "lstrip": false}')
        (tmp_path / "older" / name).write_text(text if "config" in name else (tmp_path / name).read_text())
    assert load_tokenizer(tmp_path / "older").eos_id == load_tokenizer(tmp_path).eos_id
    for folder in (each for each in folders if each.is_dir()):
        own, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        assert isinstance(own, JsonTokenizer)
        assert (own.bos_id, own.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
        for text in ("Yes.", "有异常，在左上角。", "a  b\n", " 3 °C <|im_end|>", "don 't , it 's"):
            ids = theirs.encode(f" {text}", add_special_tokens=False)
            assert own.encode(text) == ids
            options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            assert own.decode(ids) == theirs.decode(ids, **options).removeprefix(" ")


def test_damaged_tokeniser_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path)
