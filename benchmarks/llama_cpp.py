"""The compact model's words by llama.cpp, beside the product and transformers: ``python benchmarks/llama_cpp.py``.

Writes the language model, LoRA merged, as GGUF, and lets all sides continue the same findings and question in turns:
text alone, without the image's embedding. Needs ``pip install xllamacpp gguf``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import xllamacpp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))

from anomalygpt.config.load import load_config, resolve
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.findings import LANGUAGES
from anomalygpt.datasets.findings_dialogue import draw_findings, draw_question, kinds, with_findings
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.chat import END_OF_TURN, chat_prompt, layout_of
from anomalygpt.model.generation import ConversationCache, stream_tokens

KINDS = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
Timed = tuple[float, float, str]  # seconds to the first token, of a further one; the answer
Side = Callable[[list[int]], Timed]  # of a prompt


def write_gguf(llm: Any, folder: Path, path: Path, kind: str) -> None:
    """Writes a LLaMA of transformers with the tokenizer of its folder; vectors stay float32."""
    config, writer = llm.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in map(_pair, tokenizer["model"]["merges"])])
    writer.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in llm.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp turns neighbours, transformers halves
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        written = KINDS[kind] if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(array), written)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge if isinstance(merge, list) else merge.split(" ")
    return first, second


def by_llama_cpp(path: Path, threads: int, tokens: int) -> Side:
    """A server in this process, asked without HTTP."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.port = str(path), 2048, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = params.verbosity = 0
    server = xllamacpp.Server(params)

    def run(ids: list[int]) -> Timed:
        options = {"max_tokens": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        found = server.handle_completions({"prompt": ids, **options})
        further = found["timings"]["predicted_per_token_ms"] / 1000
        return found["timings"]["prompt_ms"] / 1000 + further, further, _answer(found["choices"][0]["text"])

    return run


def by_torch(llm: Any, tokens: int, tokenizer: Any) -> Side:
    """The product's loop, around its own decoder or transformers'."""
    settings = GenerationSettings(max_new_tokens=tokens, temperature=0)

    def run(ids: list[int]) -> Timed:
        start, found, times = time.perf_counter(), [], []
        for token in stream_tokens(llm, None, ids, ConversationCache(), settings):
            found.append(token)
            times.append(time.perf_counter() - start)
        return times[0], (times[-1] - times[0]) / (tokens - 1), _answer(tokenizer.decode(found))

    return run


def _answer(text: str) -> str:
    """What is generated before the end of the turn."""
    return text.partition(END_OF_TURN)[0].strip()


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Drawn findings and questions in held-out wordings."""
    found = []
    for number in range(count):
        rng, language = np.random.default_rng(number), LANGUAGES[number % len(LANGUAGES)]
        findings = draw_findings(rng)
        kind = kinds(language)[int(rng.integers(len(kinds(language))))]
        question, _ = draw_question(kind, findings, language, rng, "held_out")
        found.append(tokenizer.encode(chat_prompt((), with_findings(question, findings), layout_of(tokenizer))))
    return found


SIDES = ("the product, bfloat16", "transformers, float32", "llama.cpp, bf16", "llama.cpp, q8_0")


def inside(side: str, scratch: Path, threads: int, tokens: int, count: int) -> list[Timed]:
    """One side's answers, in a process of its own: the OpenMP threads of torch and of llama.cpp hinder each other."""
    torch.set_num_threads(threads)
    settings = ["llm.precision=full"] if side.startswith("transformers") else []
    model = Predictor.from_config(load_config("compact", settings), "cpu").model
    asked = prompts(model.tokenizer, count)
    if settings:
        model.llama_model = model.llama_model.merge_and_unload().float()
        for kind in KINDS:
            if not (path := scratch / f"{kind}.gguf").exists():
                write_gguf(model.llama_model, resolve(load_config("compact").llm.weights), path, kind)
    if side.startswith("llama.cpp"):
        model.llama_model, run = None, by_llama_cpp(scratch / f"{side.split()[1]}.gguf", threads, tokens)
    else:
        run = by_torch(model.llama_model, tokens, model.tokenizer)
    run(asked[0])
    return list(map(run, asked))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Tokens by llama.cpp beside the product and transformers.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="in each of which every side has a process")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    given = (arguments.threads, arguments.tokens, arguments.prompts)
    if arguments.side:
        print(json.dumps(inside(arguments.side, arguments.scratch, *given)))
        return 0
    rows: dict[str, list[Timed]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.rounds):
            for side in ("transformers, float32", *(side for side in SIDES if "transformers" not in side)):
                options = [
                    f"--{name}={value}" for name, value in zip(("threads", "tokens", "prompts"), given, strict=True)
                ]
                command = [sys.executable, __file__, *options, f"--side={side}", f"--scratch={scratch}"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows[side] += json.loads(done.stdout.splitlines()[-1])
    print(f"{arguments.threads} threads, medians\n")
    print("| | first token, ms | a further token, ms | same answers |\n|---|--:|--:|--:|")
    for name in SIDES:
        first, further = (1000 * statistics.median(row[i] for row in rows[name]) for i in (0, 1))
        pairs = zip(rows[name], rows["transformers, float32"], strict=True)
        same = f"{sum(own[2] == other[2] for own, other in pairs)} of {len(rows[name])}"
        print(f"| {name} | {first:.1f} | {further:.1f} | {same} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
