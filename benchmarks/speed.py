"""Time and peak memory of a photo's map, an answer and new references: ``python benchmarks/speed.py --out speed.md``.

Every scenario runs in a process of its own, so that its peak memory is its own. The photos are generated: speed does
not depend on what they show.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "code"))

SHOTS = 4
ANSWER_TOKENS = 30
PHOTO_SIDE = 1024  # pixels; MVTec-AD's photos have 700 to 1024
MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """One scenario.

    Attributes:
        seconds: the median of the whole, and of each of its parts, in order; the whole comes first.
        loaded_mib, peak_mib: the process's largest resident memory before the first run, and after the last.
        agreement: for an alternative, its largest difference from the product's own result.
    """

    scenario: str
    seconds: dict[str, float]
    loaded_mib: float
    peak_mib: float
    agreement: float | None = None


@dataclass(frozen=True)
class Bench:
    """What a scenario has at hand: how often to run, a predictor, and photos of which the first is the query."""

    repeats: int
    warmup: int
    predictor: Any
    photos: list[Any]

    @property
    def query(self) -> Any:
        """The photo that is looked at."""
        return self.photos[0]

    @property
    def references(self) -> list[Any]:
        """The K photos that it is held against."""
        return self.photos[1 : 1 + SHOTS]

    def median(self, action: Callable[[], Any]) -> float:
        """The median duration of an action in seconds, after some runs that do not count."""
        times = []
        for _ in range(self.warmup + self.repeats):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return statistics.median(times[self.warmup :])

    def encode(self, photos: Sequence[Any]) -> Any:
        """Features of photos."""
        import torch

        transform = self.predictor.transform
        return self.predictor.model.encode(torch.stack([transform(photo) for photo in photos]))


# -- scenarios: each returns seconds by part, the whole first, and an alternative's agreement --------------------------

Timed = tuple[dict[str, float], float | None]


def text_map(bench: Bench) -> Timed:
    """Predictor.look without references."""
    return _look_parts(bench), None


def reference_map(bench: Bench) -> Timed:
    """Predictor.look against K references."""
    bench.predictor.set_references(bench.references)
    return _look_parts(bench), None


def _look_parts(bench: Bench) -> dict[str, float]:
    from anomalygpt.inference.regions import find_regions

    predictor, model = bench.predictor, bench.predictor.model
    look = predictor.inspect(bench.query)
    images = predictor.transform(bench.query).unsqueeze(0)

    def to_photo() -> None:
        on_photo = predictor.transform.to_photo(look.model_map[0, 0], bench.query.size).numpy()
        find_regions(on_photo, look.threshold)

    whole = bench.median(lambda: predictor.inspect(bench.query))
    parts = {
        "resize": bench.median(lambda: predictor.transform(bench.query)),
        "encoder, at its own side": bench.median(lambda: model.encode(images)),
        "map to the photo's pixels, regions": bench.median(to_photo),
    }
    return {"whole": whole, **parts, "the rest: the map itself": whole - sum(parts.values())}


def whole_look(bench: Bench) -> Timed:
    """Predictor.look against K references, as a whole."""
    bench.predictor.set_references(bench.references)
    return {"whole": bench.median(lambda: bench.predictor.inspect(bench.query))}, None


def straightened(bench: Bench) -> Timed:
    """The same of a part three times as long as wide, at other angles on a plain background: it is straightened."""
    from PIL import Image, ImageDraw

    photos = []
    for angle in range(20, 20 + 15 * (1 + SHOTS), 15):
        photo = Image.new("RGB", (PHOTO_SIDE, PHOTO_SIDE), "silver")
        ImageDraw.Draw(photo).rectangle((150, 392, 870, 632), fill="dimgray")
        photos.append(photo.rotate(angle, Image.Resampling.BICUBIC, fillcolor="silver"))
    return whole_look(replace(bench, photos=photos))


def answer(bench: Bench) -> Timed:
    """Predictor.look against K references, and an answer of exactly ANSWER_TOKENS tokens."""
    bench.predictor.set_references(bench.references)
    clocks: list[list[float]] = []
    whole = bench.median(lambda: clocks.append(_answer_by_clock(bench)))
    counted = clocks[bench.warmup :]
    further = statistics.median(clock[-1] - clock[1] for clock in counted)
    return {
        "whole": whole,
        "map": statistics.median(clock[0] for clock in counted),
        "prefill, first token": statistics.median(clock[1] - clock[0] for clock in counted),
        f"{ANSWER_TOKENS - 1} further tokens": further,
        "one further token": further / (ANSWER_TOKENS - 1),
    }, None


def answer_apart(bench: Bench) -> Timed:
    """The same with LoRA's adapters beside the weights that they stand on."""
    bench.predictor.model.llama_model.unmerge_adapter()
    return answer(bench)


def conversation(bench: Bench) -> Timed:
    """The first token with findings and without, that of a follow-up, and the whole answer, in turn."""
    from anomalygpt.inference.language_models import PromptedModel

    predictor, first, follow_up = bench.predictor, "Is there any defect in the image?", "Where is it?"
    predictor.set_references(bench.references)
    image = predictor.inspect(bench.query)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(bench.warmup + bench.repeats):
        without = PromptedModel(predictor.model, predictor.generation, False).texts(image, first, ())
        times["first token without findings in the prompt"].append(_until_first(without))
        without.close()
        model = PromptedModel(predictor.model, predictor.generation)
        start, pieces = time.perf_counter(), model.texts(image, first, ())
        times["first token with them"].append(_until_first(pieces))
        begun = time.perf_counter()
        *_, answer = pieces
        streamed = time.perf_counter() - start
        follows = model.texts(image, follow_up, [(first, answer)])
        times["first token of a follow-up"].append(_until_first(follows))
        follows.close()
        tokens = len(predictor.model.tokenizer.encode(answer))
        times["one further token"].append((start + streamed - begun) / tokens)  # the first one's place has the stop
        times["a token of the whole answer"].append(streamed / tokens)
    parts = {name: statistics.median(values[bench.warmup :]) for name, values in times.items()}
    return {"whole": parts["a token of the whole answer"] * tokens, **parts}, None


def _until_first(pieces: Iterator[str]) -> float:
    start = time.perf_counter()
    next(pieces)
    return time.perf_counter() - start


def _answer_by_clock(bench: Bench) -> list[float]:
    """Seconds until the map was there, and from the question on until each token was."""
    from anomalygpt.config.settings import GenerationSettings
    from anomalygpt.datasets.dialogue import detection_question
    from anomalygpt.model.chat import chat_prompt
    from anomalygpt.model.generation import ConversationCache, stream_tokens

    start, model = time.perf_counter(), bench.predictor.model
    look = bench.predictor.inspect(bench.query)
    times = [time.perf_counter() - start]
    ids = model.tokenizer.encode(chat_prompt((), detection_question("bottle", with_description=False)))
    prefix = model.prompt_embeds(look.features, look.model_map)
    settings = GenerationSettings(max_new_tokens=ANSWER_TOKENS)
    tokens = stream_tokens(model.llama_model, prefix, ids, ConversationCache(), settings)
    return [*times, *(time.perf_counter() - start for _ in tokens)]


def references_added(bench: Bench, count: int = SHOTS) -> Timed:
    """Predictor.set_references with so many photos."""
    photos = bench.references[:count]
    return {"whole": bench.median(lambda: bench.predictor.set_references(photos))}, None


def search(bench: Bench) -> Timed:
    """The product's nearest-patch search alone: unit vectors, one matrix product a tap."""
    features, _, memory = _search_inputs(bench)
    return {"whole": bench.median(lambda: memory.similarity(features))}, None


def search_broadcast(bench: Bench) -> Timed:
    """The same as a broadcast cosine similarity: a (patches, K * patches, width) tensor a tap."""
    features, references, memory = _search_inputs(bench)
    run = partial(broadcast_similarity, features, references)
    difference = (run() - memory.similarity(features)).abs().max()
    return {"whole": bench.median(run)}, float(difference)


def _search_inputs(bench: Bench) -> tuple[Any, Any, Any]:
    from anomalygpt.model.memory_bank import MemoryBank

    references = bench.encode(bench.references)
    return bench.encode([bench.query]), references, MemoryBank(references)


def broadcast_similarity(query: Any, references: Any) -> Any:
    """Features of one photo and of K references -> (1, P, P), as ``MemoryBank.similarity`` gives it."""
    import torch
    import torch.nn.functional as F

    layers = []
    for tap, bank in zip(query.taps, references.taps, strict=True):
        pairs = F.cosine_similarity(tap[0][:, None], bank.flatten(0, 1)[None], dim=-1)  # (P * P, K * P * P)
        layers.append(pairs.amax(dim=1))
    return torch.stack(layers).mean(dim=0).view(1, query.grid, query.grid)


def references_each_time(bench: Bench) -> Timed:
    """A map for which the K references are encoded again."""

    def run() -> Any:
        bench.predictor.set_references(bench.references)
        return bench.predictor.inspect(bench.query)

    first = run().map
    difference = abs(bench.predictor.inspect(bench.query).map - first).max()
    return {"whole": bench.median(run)}, float(difference)


@dataclass(frozen=True)
class Scenario:
    """What is measured, under which settings beside those of the config."""

    title: str
    run: Callable[[Bench], Timed]
    settings: tuple[str, ...] = ()


FULL = "llm.precision=full"  # transformers, in float32
UPRIGHT = "inference.references.augmentation=none"
TRUSTED = "inference.references.text_trusted_below=1"  # what the photos show may not decide what is timed
TURNED = "inference.references.augmentation=rotations"
BEST = "inference.references.preset=best"
OFFICIAL = "inference.references.preset=official"
ONE_MAP = f"one photo's map, {SHOTS} references"
SCENARIOS = {
    "text_map": Scenario("one photo's map, no references", text_map),
    "reference_map": Scenario(ONE_MAP, reference_map, (UPRIGHT, TRUSTED)),
    "turned": Scenario(f"{ONE_MAP} and their quarter turns", whole_look, (TURNED, TRUSTED)),
    "straightened": Scenario(f"{ONE_MAP}, of a part that is straightened", straightened, (TRUSTED,)),
    "official": Scenario(f"{ONE_MAP}, preset `official`", whole_look, (OFFICIAL,)),
    "best": Scenario(f"{ONE_MAP}, preset `best`", whole_look, (BEST, UPRIGHT, TRUSTED)),
    "best_turned": Scenario(f"{ONE_MAP} and their quarter turns, preset `best`", whole_look, (BEST, TURNED, TRUSTED)),
    "answer": Scenario(
        f"map with {SHOTS} references, answer of {ANSWER_TOKENS} tokens", answer, (UPRIGHT, TRUSTED, FULL)
    ),
    "answer_apart": Scenario(
        "the same, LoRA's adapters not folded into the weights", answer_apart, (UPRIGHT, TRUSTED, FULL)
    ),
    "conversation": Scenario("a checked answer's words: `Is there any defect in the image?`", conversation, (UPRIGHT,)),
    "conversation_full": Scenario("the same in float32, by transformers", conversation, (UPRIGHT, FULL)),
    "references_added": Scenario(f"{SHOTS} references added", references_added),
    "one_reference_added": Scenario("one reference added, with its quarter turns", partial(references_added, count=1)),
    "search": Scenario("nearest reference patch alone: unit vectors, matrix product", search),
    "search_broadcast": Scenario("nearest reference patch alone: broadcast cosine similarity", search_broadcast),
    "references_each_time": Scenario(f"{ONE_MAP} encoded again", references_each_time, (UPRIGHT, TRUSTED)),
}
# What is slower or larger than what the product does.
ALTERNATIVES = {"search_broadcast": "search", "references_each_time": "reference_map", "answer_apart": "answer"}
SHOWN = tuple(name for name in SCENARIOS if name not in ("search", *ALTERNATIVES))
SPEAKING = ("answer", "answer_apart", "conversation", "conversation_full")


# -- one scenario, in its own process ---------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> Measured:
    """Runs one scenario in this process."""
    import torch

    from anomalygpt.config.load import load_config
    from anomalygpt.inference.predictor import Predictor

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name = arguments.scenario
    config = load_config(arguments.config, [*SCENARIOS[name].settings, *arguments.set])
    predictor = Predictor.from_config(config, "cpu", with_llm=name in SPEAKING)
    photos = [generated_photo(seed) for seed in range(1 + SHOTS)]
    bench = Bench(arguments.repeats, arguments.warmup, predictor, photos)
    loaded = peak_mib()
    with torch.inference_mode():
        seconds, agreement = SCENARIOS[name].run(bench)
    return Measured(name, seconds, loaded, peak_mib(), agreement)


def peak_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak * 1024 / MIB


def generated_photo(seed: int) -> Any:
    """A photo of smooth random colours."""
    import numpy as np
    from PIL import Image

    cells = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BICUBIC)


# -- all scenarios ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(given)
    if arguments.scenario:
        from anomalygpt.errors import user_errors

        with user_errors():
            print(json.dumps(asdict(measure(arguments))))
        return 0
    results = {name: in_own_process(name, arguments, given) for name in SCENARIOS}
    page = as_markdown(results, arguments, shlex.join(["python", "benchmarks/speed.py", *given]))
    print(page, end="")
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and peak memory on this machine's CPU.")
    parser.add_argument("--config", default="compact", help="a shipped experiment's name, or a YAML file")
    parser.add_argument("--threads", type=int, help="of the matrix products (default: torch's own choice)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median is taken")
    parser.add_argument("--warmup", type=int, default=2, help="runs before them that do not count")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page, as Markdown")
    parser.add_argument("--set", nargs="+", default=[], metavar="key.sub=value", help="settings to change")
    parser.add_argument("--scenario", choices=SCENARIOS, help="only this one, here, as JSON")
    return parser.parse_args(argv)


def in_own_process(name: str, arguments: argparse.Namespace, given: Sequence[str]) -> Measured:
    """Runs a scenario in a fresh process; its error ends this one."""
    print(f"{name} …", file=sys.stderr)
    threads = {"OMP_NUM_THREADS": str(arguments.threads)} if arguments.threads else {}
    command = [sys.executable, __file__, "--scenario", name, *given]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def as_markdown(results: dict[str, Measured], arguments: argparse.Namespace, command: str) -> str:
    """The page: what it was measured on, the scenarios, and the alternatives."""
    import torch

    from anomalygpt.config.load import commit

    threads = arguments.threads or torch.get_num_threads()
    lines = [
        "# Speed and memory on a CPU",
        "",
        f"* command: `{command}`",
        f"* commit: {commit() or 'unknown'}; config: {arguments.config}; torch {torch.__version__}",
        f"* CPU: {cpu_name()}, {os.cpu_count()} cores seen, threads used: {threads}",
        f"* medians of {arguments.repeats} runs after {arguments.warmup} that do not count; photos of {PHOTO_SIDE} x "
        f"{PHOTO_SIDE}; each scenario in a fresh process, whose largest resident memory is given (torch included)",
        "",
        "| scenario | part | median | peak memory |",
        "|---|---|--:|--:|",
    ]
    for name in SHOWN:
        lines += _scenario_rows(results[name])
    lines += [
        "",
        "| what the product does | median | peak memory | alternative | median | peak memory | slower | difference |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    lines += [_alternative_row(results[ours], results[name]) for name, ours in ALTERNATIVES.items()]
    lines += [
        "",
        "Difference: the largest between the two results, cosines or map values. An answer's length is forced.",
    ]
    return "\n".join(lines) + "\n"


def _scenario_rows(found: Measured) -> list[str]:
    title = SCENARIOS[found.scenario].title
    rows = []
    for part, seconds in found.seconds.items():
        first = part == "whole"
        peak = f"{found.peak_mib:.0f} MiB" if first else ""
        rows.append(f"| {title if first else ''} | {part} | {_time(seconds)} | {peak} |")
    return rows


def _alternative_row(ours: Measured, theirs: Measured) -> str:
    cells = []
    for found in (ours, theirs):
        cells += [SCENARIOS[found.scenario].title, _time(found.seconds["whole"]), f"{found.peak_mib:.0f} MiB"]
    agreement = "" if theirs.agreement is None else f"{theirs.agreement:.0e}"
    cells += [f"{theirs.seconds['whole'] / ours.seconds['whole']:.2f} x", agreement]
    return "| " + " | ".join(cells) + " |"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
