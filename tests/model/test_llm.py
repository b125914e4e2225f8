"""Language model folders as found in the wild, and how an answer is generated and stopped (specification 6)."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from anomalygpt.errors import UserError
from anomalygpt.model.chat import END_OF_TURN, ends_turn
from anomalygpt.model.checkpoint import CheckpointError
from anomalygpt.model.llm import GenerationSettings, LoraSettings, add_lora, fold_lora, generate, load_llm
from anomalygpt.model.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from tests.shared_data import ROOT, shared

CPU = torch.device("cpu")
SMOLLM2 = ROOT / "pretrained_ckpt" / "smollm2_135m_instruct"
GREEDY = GenerationSettings(max_new_tokens=24, temperature=0)


def llama_config(rows: int = 320, width: int = 32, layers: int = 2, **changes: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        **{"intermediate_size": 48, "tie_word_embeddings": False, **changes},
    )


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(**changes)).eval()


def write_folder(folder: Path, tensors: dict[str, Tensor], config: LlamaConfig, layout: str) -> Path:
    """A model's folder: `layout` is single or sharded, .bin or .safetensors; shards as Vicuna's are named."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    kind, _, suffix = layout.partition(" ")
    stem = "pytorch_model" if suffix == "bin" else "model"

    def save(part: dict[str, Tensor], name: str) -> None:
        part = {key: value.contiguous() for key, value in part.items()}
        torch.save(part, folder / name) if suffix == "bin" else save_file(part, folder / name, {"format": "pt"})

    if kind == "single":
        save(tensors, f"{stem}.{suffix}")
        return folder
    names = sorted(tensors)
    shards = {f"{stem}-0000{n + 1}-of-00002.{suffix}": names[n::2] for n in range(2)}
    for shard, keys in shards.items():
        save({key: tensors[key] for key in keys}, shard)
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


LAYOUTS = ["single bin", "sharded bin", "single safetensors", "sharded safetensors"]


# -- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_layout_loads(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    llama = tiny_llama()
    folder = write_folder(tmp_path, llama.half().state_dict(), llama.config, layout)
    loaded = load_llm(folder, dtype, CPU)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    for name, value in llama.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype)), name


def test_rotary_frequencies_stay_float32_and_off_the_meta_device(tmp_path: Path) -> None:
    llama = tiny_llama()
    frequencies = llama.model.rotary_emb.inv_freq.clone()
    folder = write_folder(tmp_path, llama.state_dict(), llama.config, "single bin")
    loaded = load_llm(folder, torch.float16, CPU)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, frequencies)
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])


@pytest.mark.parametrize(("rows", "said"), [(320, 321), (321, 320)])
def test_the_tensors_decide_how_many_rows_there_are(tmp_path: Path, rows: int, said: int) -> None:
    llama = tiny_llama(rows=rows)
    folder = write_folder(tmp_path, llama.state_dict(), llama_config(rows=said), "sharded bin")
    loaded = load_llm(folder, torch.float32, CPU)
    assert loaded.get_input_embeddings().num_embeddings == rows
    assert loaded.lm_head.out_features == rows


def test_old_files_rotary_tensors_are_tolerated(tmp_path: Path) -> None:
    llama = tiny_llama()
    extra = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    folder = write_folder(tmp_path, {**llama.state_dict(), **extra}, llama.config, "single bin")
    assert load_llm(folder, torch.float32, CPU).config.num_hidden_layers == 2


@pytest.mark.parametrize("carried", [True, False], ids=["with its output layer", "without"])
def test_tied_model_loads_with_and_without_its_output_layer(tmp_path: Path, carried: bool) -> None:
    llama = tiny_llama(tie_word_embeddings=True)
    tensors = {name: value.clone() for name, value in llama.state_dict().items()}
    if not carried:
        del tensors["lm_head.weight"]
    loaded = load_llm(write_folder(tmp_path, tensors, llama.config, "single bin"), torch.float32, CPU)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_norms_epsilon_is_the_checkpoints(tmp_path: Path) -> None:
    llama = tiny_llama(rms_norm_eps=1e-3)
    loaded = load_llm(write_folder(tmp_path, llama.state_dict(), llama.config, "single bin"), torch.float32, CPU)
    assert {norm.variance_epsilon for norm in (loaded.model.norm, loaded.model.layers[0].input_layernorm)} == {1e-3}


def test_safetensors_win_over_left_over_shards(tmp_path: Path) -> None:
    """As transformers has it: an index of .bin shards that are gone does not matter beside model.safetensors."""
    llama = tiny_llama()
    write_folder(tmp_path, llama.state_dict(), llama.config, "sharded bin")
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    write_folder(tmp_path, llama.state_dict(), llama.config, "single safetensors")
    loaded = load_llm(tmp_path, torch.float32, CPU)
    assert torch.equal(loaded.lm_head.weight, llama.lm_head.weight)


def refused(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as error:
        load_llm(folder, torch.float32, CPU)
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    llama = tiny_llama()
    write_folder(tmp_path, llama.state_dict(), llama.config, "sharded bin")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    assert "1 of 2 weight shards are missing: pytorch_model-00002-of-00002.bin" in refused(tmp_path)


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    llama = tiny_llama()
    write_folder(tmp_path, llama.state_dict(), llama.config, "sharded safetensors")
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    text = refused(tmp_path)
    assert shard.name in text
    assert "not fully downloaded" in text


def test_index_that_is_none(tmp_path: Path) -> None:
    llama_config().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text("<html>")
    assert "not an index" in refused(tmp_path)


def test_wrong_width_is_told_with_what_the_file_is(tmp_path: Path) -> None:
    llama = tiny_llama(width=64, layers=3)
    write_folder(tmp_path, llama.state_dict(), llama_config(width=32, layers=3), "single safetensors")
    text = refused(tmp_path)
    assert "model.embed_tokens.weight is 320x64, expected 320x32" in text
    assert "a language model 64 wide with 320 tokens and 3 layers" in text


def test_missing_layers_are_counted(tmp_path: Path) -> None:
    tensors = {name: value for name, value in tiny_llama().state_dict().items() if "layers.1." not in name}
    write_folder(tmp_path, tensors, llama_config(), "single bin")
    assert "9 of 21 tensors missing (model.layers.1." in refused(tmp_path)


@pytest.mark.parametrize("content", [None, "not json", '{"model_type": "nothing_known"}'])
def test_folder_without_a_usable_config(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert "config.json" in refused(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    llama_config().save_pretrained(tmp_path)
    assert "no weights there" in refused(tmp_path)


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
    config = llama_config(rows=32000, width=1024, layers=4, intermediate_size=2048)
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    tensors = {name: torch.zeros(value.shape, dtype=torch.half) for name, value in skeleton.state_dict().items()}
    size = sum(value.nbytes for value in tensors.values()) / 2**20
    large = write_folder(tmp_path / "large", tensors, config, "sharded safetensors")
    llama = tiny_llama()
    small = write_folder(tmp_path / "small", llama.state_dict(), llama.config, "single safetensors")
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'code')!r})\n{MEASURE}"
    command = [sys.executable, "-c", script, str(small), str(large)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1]) < 1.3 * size + 20, size


# -- LoRA -----------------------------------------------------------------------------------------------------------


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
        (
            ("foo",),
            "llm.lora.targets [foo]: no such modules in this language model; its linear layers are called q_proj,",
        ),
        (("q_proj", "foo"), "[foo]: no such modules"),  # PEFT would train the other one without a word
        (("mlp",), "[mlp]: LoRA can't stand on all of these"),
        ((), "[]: names no module"),
    ],
)
def test_lora_on_a_module_that_is_not_there_is_told_with_those_that_are(targets: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as error:
        add_lora(tiny_llama(), LoraSettings(targets=targets))
    assert isinstance(error.value, UserError)
    assert words in str(error.value) and "down_proj" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_lora_says_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    llm = add_lora(tiny_llama().to(dtype), LoraSettings(rank=4)).eval()
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 9)[None]
    weights = llm.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    with torch.inference_mode():
        apart, before = llm(ids).logits, weights.clone()
        fold_lora(llm)
        folded = llm(ids).logits
    assert torch.allclose(folded, apart, atol=1e-5)
    assert torch.equal(weights, before) == (dtype == torch.bfloat16), "half precision keeps them apart"


def test_lora_on_an_output_layer_that_is_the_embedding_too_is_not_folded() -> None:
    llm = add_lora(tiny_llama(tie_word_embeddings=True), LoraSettings(rank=4, targets=("q_proj", "lm_head"))).eval()
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 9)[None]
    with torch.inference_mode():
        apart = llm(ids).logits
        fold_lora(llm)
        assert torch.allclose(llm(ids).logits, apart, atol=1e-5)


def test_lora_of_a_half_precision_model_is_float32_and_runs() -> None:
    llm = add_lora(tiny_llama().half(), LoraSettings(rank=4)).eval()
    adapters = {p.dtype for name, p in llm.named_parameters() if "lora_" in name}
    others = {p.dtype for name, p in llm.named_parameters() if "lora_" not in name}
    assert (adapters, others) == ({torch.float32}, {torch.float16})
    with torch.no_grad():
        logits = llm(inputs_embeds=torch.randn(1, 3, 32).half()).logits
    assert logits.dtype == torch.float16
    assert logits.isfinite().all()


# -- generation -----------------------------------------------------------------------------------------------------


class Recite(LogitsProcessor):
    """Makes the model write given ids: row i of the batch recites ``scripts[i]``, then its last id over and over."""

    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        self.scripts = scripts
        self.step = 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -1e4)
        for row, script in enumerate(self.scripts):
            forced[row, script[min(self.step, len(script) - 1)]] = 0
        self.step += 1
        return forced


def recited(
    tokenizer: Tokenizer, scripts: Sequence[Sequence[int]], rows: int, limit: int = 64
) -> tuple[list[str], int]:
    """What ``generate`` makes of a model that writes the scripts, and after how many steps it ended."""
    llm = tiny_llama(rows=rows, layers=1)
    script = Recite(scripts)
    answers = generate(
        llm,
        torch.zeros(len(scripts), 2, 32),
        torch.ones(len(scripts), 2, dtype=torch.long),
        tokenizer,
        GenerationSettings(max_new_tokens=limit),
        logits_processor=LogitsProcessorList([script]),
    )
    return answers, script.step


@pytest.fixture(scope="module")
def llama_tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(shared("parity/llama_tokenizer.model"))


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> HuggingFaceTokenizer:
    if not (SMOLLM2 / "tokenizer.json").is_file():
        pytest.skip(f"needs {SMOLLM2.name} (python fetch_weights.py)")
    tokenizer = load_tokenizer(SMOLLM2)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


@pytest.fixture(scope="module", params=["llama", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(f"{request.param}_tokenizer")


def test_generation_stops_at_llamas_first_2277(llama_tokenizer: SentencePieceTokenizer) -> None:
    script = llama_tokenizer.encode("Yes, at the top left." + END_OF_TURN + " Human: why?")
    answers, steps = recited(llama_tokenizer, [script], rows=32000)
    assert answers == ["Yes, at the top left."]
    assert steps == script.index(2277) + 1


def test_answer_ends_at_the_mark(tokenizer: Tokenizer) -> None:
    script = tokenizer.encode("No. Item #3 is fine." + END_OF_TURN + " Human: and the rest?")
    answers, steps = recited(tokenizer, [script], rows=50000)
    assert answers == ["No. Item #3 is fine."]
    assert steps < len(script)


def test_answer_that_is_cut_by_length_loses_nothing(tokenizer: Tokenizer) -> None:
    script = tokenizer.encode("Yes, there is an anomaly in the image")
    answers, steps = recited(tokenizer, [script], rows=50000, limit=len(script))
    assert answers == ["Yes, there is an anomaly in the image"]
    assert steps == len(script)


def test_answer_that_eos_ends_loses_nothing(tokenizer: Tokenizer) -> None:
    script = [*tokenizer.encode("Yes, there is one #"), tokenizer.eos_id, *tokenizer.encode("rubbish")]
    answers, steps = recited(tokenizer, [script], rows=50000)
    assert answers == ["Yes, there is one #"]
    assert steps == len(tokenizer.encode("Yes, there is one #")) + 1


def test_each_answer_of_a_batch_ends_by_itself(tokenizer: Tokenizer) -> None:
    texts = ["No.", "Yes, at the top right, and it is a large one.", "Yes."]
    scripts = [tokenizer.encode(text + END_OF_TURN + " more and more words follow here") for text in texts]
    answers, _ = recited(tokenizer, scripts, rows=50000)
    assert answers == texts


@pytest.mark.parametrize("text", ["Yes.", "有异常，在左上角。", "crack 🔧 at 3 °C", "a  b", "two\nlines", "# é"])
def test_text_makes_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("text", ["Yes.", "有异常。", "It is bent 🔧"])
def test_end_of_turn_is_seen_after_any_answer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text + END_OF_TURN)
    seen = [ends_turn(ids[:n], tokenizer) for n in range(len(ids) + 1)]
    assert any(seen)
    assert not any(seen[: len(tokenizer.encode(text)) + 1])


def test_vicunas_padding_row_is_no_text(llama_tokenizer: SentencePieceTokenizer) -> None:
    assert llama_tokenizer.decode([*llama_tokenizer.encode("Yes."), 32000]) == "Yes."


def test_damaged_tokeniser_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path)
