"""Memory and speed of training on this machine: ``python benchmarks/training.py --what loader``.

* ``loader``: pairs per second that one core prepares, against those that a training step takes.
* ``instructions``: time and memory of the index of 161,000 conversations.
* ``host-memory``: the peak resident memory of a process that loads a random LLaMA's shards in half precision.
* ``speed``: CPU seconds per pair of the compact model's stages, without and with what makes them fast, in turns.
* ``estimate``: what ``train.py --dry-run`` estimates, against the peak resident memory of real runs on this CPU.

Every measurement runs in a fresh process.
"""

import argparse
import cProfile
import json
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "code"))

GIB = 2**30
SHARDS = 8
GPU_STEP = 1.0  # assumed seconds of a GPU's optimiser step
PAPERS_BATCH = 16  # pairs
PHOTOS_PER_PAIR = 3  # that are decoded
KINDS = {
    "simulated: pasted patches (NSA)": ["data.drawn_share=0"],
    "simulated: drawn": ["data.drawn_share=1"],
    "real defects": ["data.defects=real", "data.follow_up_questions=true", "data.languages=[en,zh]"],
}
STAGES = ("train_compact_1_map", "train_compact_2_answer")
SOURCE = "data.sources=[{kind: mvtec, root: data/mvtec_layout}]"
# LLaMA's shape at several sizes; the number is the name.
LLAMAS = {
    "0.1b": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "2.6b": {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32, "num_attention_heads": 32},
}
VOCABULARY = 32000
CONVERSATIONS = 161_000  # PandaGPT's
INSTRUCTION_PHOTOS = 80_000


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss is inherited from the process that started this one
        return _kilobytes(status, "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kilobytes(status: Path, name: str) -> int:
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0])


# -- loader -----------------------------------------------------------------------------------------------------------


def loader(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pairs per second of each kind of data on one core, their hot spots, and those of the training step."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found: dict[str, Any] = {"kinds": {kind: _loader_of(KINDS[kind], arguments) for kind in KINDS}}
    found["decoding"] = _decoding(arguments)
    for stage in STAGES:
        found[stage] = _step_seconds(stage, arguments)
    return found


def _loader_of(settings: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    from anomalygpt.config.load import load_config
    from anomalygpt.datasets.build import build_pairs
    from anomalygpt.datasets.transforms import ImageTransform
    from anomalygpt.model.build import image_spec

    config = load_config(STAGES[0], [*arguments.set, *settings])
    spec = image_spec(config.encoder)
    pairs: Any = build_pairs(config.data, ImageTransform(spec.size, spec.mean, spec.std), config.seed)[0]
    chosen = [round(at * (len(pairs) - 1) / (arguments.pairs - 1)) for at in range(arguments.pairs)]
    found = {"all": len(pairs), "pairs": len(chosen) / _core_seconds(lambda: [pairs[i] for i in chosen])}
    profile = cProfile.Profile()
    profile.runcall(lambda: [pairs[i] for i in chosen])
    return found | {"hot": _hot_spots(profile)}


def _decoding(arguments: argparse.Namespace, side: int = 1024, photos: int = 8) -> float:
    """Photos per second of the official data set's size that one core decodes and resizes."""
    import numpy as np

    from anomalygpt.config.load import load_config
    from anomalygpt.datasets.build import build_records
    from anomalygpt.datasets.photos import load_image
    from anomalygpt.datasets.transforms import ImageTransform
    from anomalygpt.model.imagebind.imagebind import CLIP_MEAN, CLIP_STD

    config = load_config(STAGES[0], arguments.set)
    records = [record for record in build_records(config.data) if record.split == "train"]
    transform = ImageTransform(224, CLIP_MEAN, CLIP_STD)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(photos)]
        for file, record in zip(files, records[:: len(records) // photos], strict=False):
            load_image(record.image).resize((side, side)).save(file)
        return photos / _core_seconds(lambda: [np.array(transform.shown(load_image(file))) for file in files])


def _core_seconds(act: Callable[[], Any]) -> float:
    """CPU seconds of a function that runs in one thread."""
    start = time.process_time()
    act()
    return time.process_time() - start


def _hot_spots(profile: cProfile.Profile, shown: int = 5) -> list[tuple[str, float]]:
    """The functions with the most time without their callees, as fractions of all."""
    stats: Any = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])[:shown]
    return [(f"{Path(file).name}:{name}", own / stats.total_tt) for (file, _, name), (_, _, own, _, _) in rows]


def _step_seconds(stage: str, arguments: argparse.Namespace) -> tuple[float, int]:
    """(CPU seconds for forward, backward and optimiser of one prepared batch, pairs in it)."""
    import torch

    from anomalygpt.config.load import load_config
    from anomalygpt.datasets.build import build_pairs
    from anomalygpt.datasets.pairs import collate_pairs
    from anomalygpt.datasets.transforms import ImageTransform
    from anomalygpt.model.build import build_model, trainable_parts

    config = load_config(stage, [*arguments.set, "deltas=[]"])
    settings = config.training
    model = build_model(config, torch.device("cpu"), with_llm=settings.answers)
    parameters = [p for group in trainable_parts(model, settings.trainable).values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    spec = model.encoder.spec
    pairs, _ = build_pairs(config.data, ImageTransform(spec.size, spec.mean, spec.std), config.seed)
    batch = collate_pairs([pairs[i] for i in range(settings.micro_batch_size)])
    length = config.llm.max_target_tokens if config.llm else 0

    def step() -> None:
        model.train()
        losses = model(
            batch.images,
            batch.conversations,
            max_length=length,
            class_names=batch.class_names,
            target=batch.masks,
        )
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return min(_core_seconds(step) for _ in range(arguments.repeats)), settings.micro_batch_size


def loader_page(found: dict[str, Any]) -> list[str]:
    """The loader's tables."""
    lines = [
        "Pairs per second that one core prepares: three photos (normal, defect, reference), a simulated defect or a "
        "real mask, two conversations.",
        "",
        "| data | pairs per second | where the time goes (functions' own time) |",
        "|---|--:|---|",
    ]
    for kind, row in found["kinds"].items():
        hot = ", ".join(f"`{name}` {share:.0%}" for name, share in row["hot"])
        lines.append(f"| {kind} | {row['pairs']:.1f} | {hot} |")
    slowest = min(row["pairs"] for row in found["kinds"].values())
    lines += [
        "",
        f"A core decodes and resizes {found['decoding']:.0f} photos of 1024 x 1024, MVTec-AD's size, per second.",
        "",
        "| training step | pairs per second that it takes | loader cores for that, slowest data |",
        "|---|--:|--:|",
    ]
    needs = {f"{stage}, one core": found[stage][1] / found[stage][0] for stage in STAGES}
    needs[f"a GPU with {GPU_STEP:g} s a step of {PAPERS_BATCH} pairs"] = PAPERS_BATCH / GPU_STEP
    lines += [f"| {name} | {need:.2f} | {need / slowest:.2f} |" for name, need in needs.items()]
    large = PAPERS_BATCH / GPU_STEP * (1 / slowest + PHOTOS_PER_PAIR / found["decoding"])
    lines += ["", f"With photos of 1024 x 1024, that GPU takes at most {large:.1f} loader cores."]
    return lines


# -- instructions -----------------------------------------------------------------------------------------------------


def instructions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a JSON list as large as PandaGPT's, with links in the place of its photos, and indexes it."""
    from PIL import Image

    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        photos = [folder / f"{number}.jpg" for number in range(8)]  # a file system allows a file so many names
        for photo in photos:
            Image.effect_noise((640, 480), 60).convert("RGB").save(photo)
        for number in range(INSTRUCTION_PHOTOS):
            os.link(photos[number % len(photos)], folder / "images" / f"{number:012}.jpg")
        file = folder / "conversations.json"
        _write_conversations(file)
        found = {turns: in_own_process(["--inside", turns, "--folder", str(folder)]) for turns in ("first", "all")}
        return found | {"size": file.stat().st_size}


def _write_conversations(file: Path) -> None:
    """Some of them about photos that are not there."""
    answer = "The picture shows a street with several cars, a person who crosses it, and houses behind. " * 4
    with file.open("w", encoding="utf-8") as out:
        for number in range(CONVERSATIONS):
            turns = [
                {"from": role, "value": f"{text} {number} {turn}"}
                for turn in range(1 + number % 4)
                for role, text in (("human", "What is in the picture, and what happens there?"), ("gpt", answer))
            ]
            name = f"{(number * 31) % (INSTRUCTION_PHOTOS + 50):012}.jpg"
            entry = json.dumps({"image_name": name, "conversation": turns})
            out.write(("[" if number == 0 else ",\n") + entry)
        out.write("]\n")


def inside_instructions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Indexes the folder's conversations, and reads some of them."""
    from anomalygpt.datasets.instructions import Instructions
    from anomalygpt.datasets.transforms import ImageTransform
    from anomalygpt.model.imagebind.imagebind import CLIP_MEAN, CLIP_STD

    before = peak_bytes()
    seconds = time.process_time()
    found = Instructions(
        arguments.folder / "conversations.json",
        arguments.folder / "images",
        ImageTransform(224, CLIP_MEAN, CLIP_STD),
        turns=arguments.inside,
    )
    seconds = time.process_time() - seconds
    peak = peak_bytes()
    each = _core_seconds(lambda: [found[at] for at in range(0, len(found), len(found) // 50)]) / 50
    return {"kept": len(found), "seconds": seconds, "memory": peak - before, "each": each}


def instructions_page(found: dict[str, Any]) -> list[str]:
    """The table of the index."""
    lines = [
        f"{CONVERSATIONS:,} conversations about {INSTRUCTION_PHOTOS:,} photos, {found['size'] / 2**20:.0f} MiB.",
        "",
        "| turns | conversations kept | seconds to index | memory, peak, MiB | a core reads per second |",
        "|---|--:|--:|--:|--:|",
    ]
    for turns in ("first", "all"):
        row = found[turns]
        numbers = f"{row['seconds']:.1f} | {row['memory'] / 2**20:.0f} | {1 / row['each']:.0f} photos of 640 x 480"
        lines.append(f"| {turns} | {row['kept']:,} | {numbers} |")
    return lines


# -- host memory ------------------------------------------------------------------------------------------------------


def host_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a random LLaMA's shards, and loads them in one fresh process, then in two at the same time."""
    found: dict[str, Any] = {"dtype": arguments.dtype, "files": arguments.files}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        found["size"] = write_llama(folder, LLAMAS[arguments.llama], arguments.files)
        found["imports"] = in_own_process(["--inside", "imports"])["peak"]
        load = ["--inside", "load", "--folder", str(folder), "--dtype", arguments.dtype]
        for count in (1, 2):
            with ThreadPoolExecutor(count) as pool:
                found[f"loads {count}"] = list(pool.map(in_own_process, [load] * count))
    return found


def write_llama(folder: Path, shape: dict[str, int], files: str = "safetensors", device: Any = "cpu") -> int:
    """Random weights in bfloat16, drawn on a device, a shard at a time, with config and index; their size in bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    config: Any = LlamaConfig(**shape, vocab_size=VOCABULARY)  # type: ignore[arg-type]
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AutoModelForCausalLM.from_config(config).state_dict().items()}
    names, index, total = list(shapes), {}, 0
    stem = "pytorch_model" if files == "bin" else "model"  # Hugging Face's names
    if shutil.disk_usage(folder).free < 3 * sum(shape.numel() for shape in shapes.values()):
        raise SystemExit(f"{folder}: not enough room on the disk; name another with --scratch")
    for number in range(SHARDS):
        tensors = {
            # With norms near one: those near zero are a delta's.
            name: torch.normal(float(name.endswith("norm.weight")), 0.02, shapes[name], device=device).bfloat16().cpu()
            for name in names[number::SHARDS]
        }
        file = f"{stem}-{number + 1:05}-of-{SHARDS:05}.{files}"
        if files == "bin":
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / f"{stem}.{files}.index.json").write_text(json.dumps(index_file))
    return total


def inside_imports(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the libraries take before a weight is read: a tiny model was loaded the same way."""
    import torch

    from anomalygpt.model.llm import load_llm

    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder), LLAMAS["0.1b"] | {"num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 8})
        load_llm(Path(folder), torch.bfloat16, torch.device("cpu"))
    return {"peak": peak_bytes()}


def inside_load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads the folder as training does."""
    import torch

    from anomalygpt.model.build import DTYPES
    from anomalygpt.model.llm import load_llm

    seconds = time.perf_counter()
    llm = load_llm(arguments.folder, DTYPES[arguments.dtype], torch.device("cpu"))
    parameters = sum(p.numel() for p in llm.parameters())
    for parameter in llm.parameters():  # a mapped weight is not resident before it is read
        parameter.detach().view(torch.int16).max()
    anonymous = _kilobytes(Path("/proc/self/status"), "RssAnon") * 1024
    return {
        "peak": peak_bytes(),
        "anonymous": anonymous,
        "parameters": parameters,
        "seconds": time.perf_counter() - seconds,
    }


def host_memory_page(found: dict[str, Any]) -> list[str]:
    """The host memory's table."""
    size, base = found["size"], found["imports"]
    lines = [
        f"A random LLaMA of {found['loads 1'][0]['parameters'] / 1e9:.2f} B parameters in {SHARDS} shards (bf16, "
        f".{found['files']}), loaded to "
        f"{found['dtype']} by `load_llm`; every weight is then read once, so that all of it is resident.",
        "",
        "| | GiB | of the weights' size |",
        "|---|--:|--:|",
        f"| the weights in half precision | {size / GIB:.2f} | 1.00 |",
        f"| the libraries, before a weight is read | {base / GIB:.2f} | {base / size:.2f} |",
    ]
    for count in (1, 2):
        for number, load in enumerate(found[f"loads {count}"], start=1):
            over, kept = load["peak"] - base, load["anonymous"]
            name = f"process {number} of {count}"
            lines.append(f"| {name}: peak resident memory over that | {over / GIB:.2f} | {over / size:.2f} |")
            lines.append(
                f"| … of its memory at the end not mapped from a file | {kept / GIB:.2f} | {kept / size:.2f} |"
            )
    return lines


# -- estimate ---------------------------------------------------------------------------------------------------------


def estimates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Estimated and measured memory of short runs: the compact stages, checkpointing, ZeRO's stages."""
    common = ["deltas=[]", "training.steps=2", "training.validation_pairs=1"]
    # The estimate is of the longest text, so every conversation has to reach it.
    words = ["llm.max_target_tokens=64", "data.description_share=1"]
    double = ["training.batch_size=2", "training.micro_batch_size=1"]
    map_stage, answer_stage = STAGES
    runs: list[tuple[str, str, list[str], int]] = [
        (f"{answer_stage}, 64 tokens", answer_stage, words, 1),
        ("… gradient checkpointing", answer_stage, [*words, "training.gradient_checkpointing=true"], 1),
    ]
    runs += [
        (
            f"… one pair for each of two processes, ZeRO {stage}",
            answer_stage,
            [*words, *double, f"training.zero_stage={stage}"],
            2,
        )
        for stage in range(4)
    ]
    runs.append((map_stage, map_stage, [], 1))
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for number, (name, config, settings, processes) in enumerate(runs):
            given = [*arguments.set, *settings, *common, f"training.output={scratch}/run{number}"]
            options = ["--inside", "train", "--config", config, f"--processes={processes}", "--set", *given]
            found = max(in_own_processes(options, processes), key=lambda one: one["peak"])
            print(name, found, file=sys.stderr)
            rows.append((name, found))
    return {"rows": rows}


def inside_train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains for a few steps in this process, and estimates the same."""
    from anomalygpt.config.load import load_config
    from anomalygpt.train import main
    from anomalygpt.training.dry_run import estimate_memory, planned_model

    config = load_config(arguments.config, arguments.set)
    main(["--config", arguments.config, "--device", "cpu", *arguments.set])
    peak = peak_bytes()
    model, _ = planned_model(config)
    device, host = estimate_memory(config, model, arguments.processes)
    parts = host | device | {"CUDA and fragments": 0}  # which a CPU has not
    return {"peak": peak, "estimated": sum(parts.values()), "parts": parts}


def estimates_page(found: dict[str, Any]) -> list[str]:
    """The table of estimated and measured memory."""
    lines = [
        "Two steps, a validation and a picture, fp32 on the CPU; with two processes, the larger of the two.",
        "",
        "| run | estimated, GiB | measured peak, GiB | error |",
        "|---|--:|--:|--:|",
    ]
    for name, row in found["rows"]:
        error = row["estimated"] / row["peak"] - 1
        lines.append(f"| {name} | {row['estimated'] / GIB:.2f} | {row['peak'] / GIB:.2f} | {error:+.0%} |")
    return lines


# -- speed ------------------------------------------------------------------------------------------------------------

SLOW = ["precision=fp32", "data.cached_photos=0"]  # as before these settings
STEADY = 3  # the epoch from which on all that repeats is kept


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per pair of each stage, each in its own process."""
    rows = {}
    for stage in (*STAGES, "train_compact_3_words"):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            root = _some_photos(arguments, Path(scratch))
            given = ["deltas=[]", f"data.sources=[{{kind: mvtec, root: {root}}}]", f"training.output={scratch}/run"]
            given += ["data.sources=[]", "data.findings=64"] if stage.endswith("words") else []
            options = ["--inside", "speed", "--config", stage, f"--repeats={arguments.repeats}", "--set", *given]
            [rows[stage]] = in_own_processes(options, 1)
            print(stage, rows[stage], file=sys.stderr)
    return {"rows": rows}


def _some_photos(arguments: argparse.Namespace, folder: Path) -> Path:
    """A tree with ``--photos`` good photos of one part of the first source, two batches of the map's stage."""
    from anomalygpt.config.load import load_config, resolve

    root = resolve(load_config(STAGES[0], arguments.set).data.sources[0].root)
    target = folder / "data" / "part" / "train" / "good"
    target.mkdir(parents=True)
    (folder / "data" / "part" / "test" / "good").mkdir(parents=True)
    for photo in sorted(next(root.glob("*/train/good")).iterdir())[: arguments.photos]:
        shutil.copy(photo, target)
    return folder / "data"


def inside_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median CPU seconds per pair of optimiser steps, in turns; and the losses of the first steps."""
    import statistics

    from anomalygpt import distributed
    from anomalygpt.config.load import load_config

    process = distributed.start("cpu")
    from anomalygpt.training.loop import build_trainer

    trainers, seconds, losses = {}, {"before": [], "cached": [], "now": []}, {}
    for name, settings in {"before": SLOW, "cached": SLOW[:1], "now": []}.items():
        trainers[name] = build_trainer(load_config(arguments.config, [*arguments.set, *settings]), process)
        trainers[name].open_batches(0)
    data = trainers["now"].data.train
    batch = trainers["now"].settings.batch_size
    first = 0 if trainers["now"].config.data.findings else STEADY * max(1, len(data) // batch)
    for step in range(first + arguments.repeats):
        for name, trainer in trainers.items():
            begun = time.process_time()
            losses.setdefault(name, []).append(trainer._optimizer_step(step)["total"])
            if step >= first:
                seconds[name].append((time.process_time() - begun) / batch)
    return {"seconds": {name: statistics.median(each) for name, each in seconds.items()}, "losses": losses}


def speed_page(found: dict[str, Any]) -> list[str]:
    """The table of the stages' speed."""
    lines = [
        "CPU seconds per pair (conversation in the third stage): decoding, defects, encoder, language model, gradients "
        "and AdamW, on photos that were seen in earlier epochs. `cached`: `data.cached_photos`; `now`: and bf16.",
        "",
        "| stage | before | cached | now | times as fast | losses: before, cached, now |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for stage, row in found["rows"].items():
        before, cached, now = row["seconds"].values()
        last = ", ".join(f"{losses[-1]:.4f}" for losses in row["losses"].values())
        lines.append(f"| {stage} | {before:.2f} | {cached:.2f} | {now:.2f} | {before / now:.1f} | {last} |")
    return lines


# -- all --------------------------------------------------------------------------------------------------------------

WHAT: dict[str, tuple[str, Callable[..., dict[str, Any]], Callable[[dict[str, Any]], list[str]]]] = {
    "loader": ("The loader against the training step", loader, loader_page),
    "instructions": ("PandaGPT's instructions at full size", instructions, instructions_page),
    "host-memory": ("Host memory of loading the language model", host_memory, host_memory_page),
    "speed": ("The compact model's stages", speed, speed_page),
    "estimate": ("The memory estimate of `--dry-run` against real runs", estimates, estimates_page),
}
INSIDE = {
    "imports": inside_imports,
    "load": inside_load,
    "train": inside_train,
    "speed": inside_speed,
    "first": inside_instructions,
    "all": inside_instructions,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(given)
    if arguments.inside:
        print(json.dumps(INSIDE[arguments.inside](arguments)))
        return 0
    title, measure, page = WHAT[arguments.what]
    lines = [f"## {title}", "", f"`python benchmarks/training.py {' '.join(given)}`", "", *page(measure(arguments))]
    print("\n".join(lines))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory and speed of training on this machine.")
    parser.add_argument("--what", choices=WHAT, default="loader")
    parser.add_argument("--llama", choices=LLAMAS, default="1b", help="the random language model's size")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="bf16", help="that it is loaded in")
    parser.add_argument("--files", choices=("safetensors", "bin"), default="safetensors", help="that it lies in")
    parser.add_argument("--scratch", help="a folder with room for it (default: the system's)")
    parser.add_argument("--pairs", type=int, default=150, help="that the loader prepares")
    parser.add_argument("--repeats", type=int, default=3, help="steps of which the fastest counts, or the median")
    parser.add_argument("--photos", type=int, default=18, help="of the part that the stages are trained on")
    parser.add_argument("--set", nargs="+", default=[SOURCE], metavar="key.sub=value", help="settings to change")
    parser.add_argument("--config", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def in_own_process(options: Sequence[str]) -> dict[str, Any]:
    """A part of a measurement, in a fresh process; its error ends this one."""
    return in_own_processes(options, 1)[0]


def in_own_processes(options: Sequence[str], processes: int) -> list[dict[str, Any]]:
    """The same in several processes that train together: what each of them found."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, __file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(done.returncode)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    sys.exit(main())
