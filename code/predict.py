"""Inspects photos: ``python predict.py PHOTO… [--reference GOOD…] [--question "…"] [--json] [--out DIR]``.

Good photos of a part are encoded once, ``python predict.py --reference GOOD… --save-references FILE``, and used again
with ``--references FILE``. All options, files and exit codes: ``docs/predict.md``.
"""

import glob
import json
import os
import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalygpt.config.load import load_config, parsed_overrides
from anomalygpt.datasets.records import IMAGE_SUFFIXES, DatasetError, find_photos, without_results
from anomalygpt.errors import UserError, reading_warning, set_strict, user_errors

if TYPE_CHECKING:
    from PIL import Image

    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.inference.outputs import Outputs
    from anomalygpt.inference.predictor import Predictor

INTERRUPTED = 130  # the exit code after Ctrl-C
INTERVAL = 0.5  # seconds, in which a complete file of a watched folder does not change


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when every photo was read, 1 when some could not be, 130 after Ctrl-C; 3 by ``--fail-on``."""
    arguments = _parse(argv)
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may hold what the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    set_strict(arguments.strict)
    with user_errors():
        try:
            return _run(arguments)
        except KeyboardInterrupt:
            return INTERRUPTED


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description="Detect and locate defects of parts in photos.")
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="photos, folders of photos, or glob patterns")
    add("--reference", nargs="+", action="extend", default=[], metavar="GOOD", help="good photos of the same part")
    add("--references", type=Path, metavar="FILE|FOLDER", help="what --save-references wrote, or a folder of photos")
    add("--save-references", type=Path, metavar="FILE", help="save them to a .safetensors file")
    for label in ("good", "bad"):
        add(f"--{label}", nargs="+", action="extend", default=[], metavar="FILE", help="photos to learn from as that")
    add("--adapt", action="store_true", help="learn from the photos as they come, without labels; needs references")
    add("--forget", action="store_true", help="forget what --good, --bad and --adapt taught the --references FILE")
    add("--unlabelled", action="store_true", help="no references: dozens of photos of one part judge each other")
    add("--question", help="by default: is there any anomaly in the image?")
    add("--class-name", help="what the photos show, as in 'screw'")
    add("--json", action="store_true", help="one JSON object a photo, on standard output")
    add("--out", type=Path, help="folder for overlays, maps (float TIFF), results.jsonl, results.csv, report.html")
    add("--coco", type=Path, metavar="FILE", help="regions as a COCO data set (JSON)")
    add("--watch", type=Path, metavar="DIR", help="inspect what comes into a folder until Ctrl-C; needs --out")
    add("--post", metavar="URL", help="also send each result there, as JSON by POST")
    add("--engine", choices=("ray",), help="inspect the photos on a Ray cluster; Parquet files in --out")
    add("--batch-size", type=int, default=1, metavar="N", help="photos that are judged at once (default: 1)")
    add("--fail-on", choices=("defective", "not-good"), help="exit with 3 if a photo was so; not-good: or undecided")
    add("--lang", choices=("auto", "en", "zh"), default="auto", help="of the lines and the report")
    add("--no-chat", action="store_true", help="maps and scores only: no language model is loaded")
    add("--recursive", action="store_true", help="photos and references in sub-folders, too")
    add("--ignore", metavar="MASK|BOX", help="excluded on every photo: a mask, or left,top,right,bottom")
    add("--strict", action="store_true", help="warnings about how files were read are errors")
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--backend", choices=("torch", "onnx", "openvino", "openvino_bf16"), help="what encodes photos on a CPU")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    arguments = parser.parse_args(argv)
    for key, value in (("data.ignore", arguments.ignore), ("encoder.backend", arguments.backend)):
        arguments.set += [f"{key}={json.dumps(value)}"] if value else []
    return arguments


def _run(arguments: Namespace) -> int:
    from anomalygpt.datasets.photos import load_image
    from anomalygpt.inference.outputs import TEXTS, Outputs, system_language
    from anomalygpt.inference.predictor import Predictor
    from anomalygpt.model.anomalygpt import UNNAMED_CLASS
    from anomalygpt.model.build import installed_config

    config = load_config(arguments.config or installed_config(), arguments.set)
    _check(arguments)
    _configure_photos(arguments, config)
    arguments.lang = system_language() if arguments.lang == "auto" else arguments.lang
    arguments.photos = expand(arguments.photos, arguments.recursive)
    # Before the model is loaded, because that takes long.
    good = [load_image(path) for path in expand(arguments.reference, arguments.recursive)]
    if arguments.engine:
        from anomalygpt.inference.ray_engine import inspect_on_ray

        counts = inspect_on_ray(arguments.photos, arguments.out, partial(_worker, arguments, config, good, Path.cwd()))
        print(TEXTS[arguments.lang]["summary"].format_map(counts))
        return _exit_code(arguments, counts)
    has_photos = bool(arguments.photos or arguments.watch)
    outputs = Outputs(arguments.out if has_photos else None, arguments.coco, resumed=bool(arguments.watch))
    predictor = Predictor.from_config(config, arguments.device, with_llm=has_photos and not arguments.no_chat)
    predictor.set_references(good, arguments.references)
    if arguments.forget:
        predictor.forget_feedback()
    for paths, is_good in ((arguments.good, True), (arguments.bad, False)):
        for path in expand(paths, arguments.recursive):
            predictor.feedback(predictor.inspect(load_image(path), arguments.class_name or UNNAMED_CLASS), is_good)
    predictor.adapts = arguments.adapt
    if arguments.unlabelled:
        photos = (photo for _, photo in read_photos(arguments.photos))
        predictor.set_unlabelled(photo for photo in photos if not isinstance(photo, DatasetError))
    if predictor.references:
        print(*predictor.report().lines(arguments.lang), sep="\n", file=sys.stderr)
    code = _inspect(arguments, config, predictor, outputs) if has_photos else 0
    if arguments.save_references:  # now, with what the photos taught
        predictor.save_references(arguments.save_references)
    return code


def _worker(arguments: Namespace, config: "ExperimentConfig", good: "list[Image.Image]", folder: Path) -> Any:
    """What inspects photos in another process; other paths begin at a folder."""
    from anomalygpt.inference.outputs import Outputs
    from anomalygpt.inference.predictor import Predictor

    os.chdir(folder)
    set_strict(arguments.strict)
    _configure_photos(arguments, config)
    predictor = Predictor.from_config(config, arguments.device, with_llm=not arguments.no_chat)
    predictor.set_references(good, arguments.references)
    return lambda paths: list(_results(arguments, predictor, Outputs(None), [{Path(path): {} for path in paths}]))


def _check(arguments: Namespace) -> None:
    """Raises :class:`UserError` if there is nothing to do, or options contradict each other."""
    if arguments.references and arguments.references.is_dir():
        arguments.reference.append(str(arguments.references))
        arguments.references = None
    photos, watch, file, saved = arguments.photos, arguments.watch, arguments.references, arguments.save_references
    has_good = arguments.reference or file
    nothing = "no photo given; expected photos to inspect, or --save-references FILE with --reference GOOD …"
    own = "--unlabelled: the photos judge each other, so it takes photos and no references"
    others = ("watch", "coco", "post", "json", "good", "bad", "adapt", "unlabelled", "save_references")
    is_alone = photos and arguments.out and not any(getattr(arguments, name) for name in others)
    no_engine = f"--engine: takes photos and --out, without --{', --'.join(others).replace('_', '-')}"
    for is_wrong, mistake in (
        (watch and (photos or arguments.coco), "--watch: takes no photos and no --coco"),
        (watch and not arguments.out, "--watch: needs --out, which remembers what was done"),
        (watch and arguments.out and watch.resolve() == arguments.out.resolve(), "--out: is --watch's folder"),
        (not (watch or photos or saved), nothing),
        (saved and not has_good, f"--save-references {saved}: needs good photos, --reference GOOD …"),
        (saved and saved.suffix != ".safetensors", f"--save-references {saved}: expected a name in .safetensors"),
        (file and not file.is_file(), f"--references {file}: no such file; --save-references makes one"),
        (arguments.adapt and not has_good, "--adapt: needs references, --reference GOOD … or --references FILE"),
        (arguments.unlabelled and (has_good or not photos), own),
        (arguments.engine and not is_alone, no_engine),
    ):
        if is_wrong:
            raise UserError(mistake)


def _configure_photos(arguments: Namespace, config: "ExperimentConfig") -> None:
    """Reads photos as the saved references were read, which the command line may not contradict."""
    from anomalygpt.datasets.photos import configure, embedded
    from anomalygpt.inference.references import saved_photo_settings

    saved = saved_photo_settings(arguments.references) if arguments.references else None
    configure(saved or config.data)
    given, changed = dict(embedded(config.data)), parsed_overrides(arguments.set)
    others = [f"data.{name}" for name, value in saved or () if given[name] not in (None, value)]
    if arguments.references and "references" in changed.get("inference", {}):
        others.append("inference.references")
    if others:
        advice = "for another one give the good photos, --reference GOOD …"
        raise UserError(f"--references {arguments.references}: saved with its own {others[0]}; {advice}")


def _inspect(arguments: Namespace, config: "ExperimentConfig", predictor: "Predictor", outputs: "Outputs") -> int:
    """Inspects the photos, or what comes into the watched folder; prints and writes the results: the exit code."""
    from tqdm import tqdm

    from anomalygpt.datasets.dialogue import detection_question
    from anomalygpt.inference.outputs import TEXTS, result_text, verdict

    watched, is_json, language = arguments.watch, bool(arguments.json or arguments.watch), arguments.lang
    texts, colour = TEXTS[language], sys.stdout.isatty() and "NO_COLOR" not in os.environ
    # Without findings, the model reads English only, and its answer is the verdict.
    if language == "zh" and not is_json and predictor.language_model and config.inference.findings != "none":
        arguments.question = arguments.question or detection_question(arguments.class_name, None, False, language)
    source: Iterable[dict[Path, Any]] = [{path: {} for path in arguments.photos}]
    if watched:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemctl stop and docker stop send it
        source = new_photos(watched.resolve(), outputs.earlier, arguments.recursive, arguments.out.resolve())
        print(texts["watching"].format(folder=watched), file=sys.stderr)
    results = _results(arguments, predictor, outputs, source)
    is_quiet = len(arguments.photos) < 2 or None  # None: where standard error is no terminal
    counts, is_stopped, sender = Counter[str](), False, ThreadPoolExecutor(1)
    try:
        for result in tqdm(results, total=len(arguments.photos), unit="photo", disable=is_quiet):
            counts[verdict(result)] += 1
            if "error" in result:
                tqdm.write(f"error: {result['error']}", file=sys.stderr)
            if watched or "error" not in result:
                line = json.dumps(result, ensure_ascii=False) if is_json else result_text(result, language, colour)
                tqdm.write(line, file=sys.stdout)
            if arguments.post:
                sender.submit(post, arguments.post, result)
            outputs.add(result)  # last: a photo on which the stop falls is inspected again rather than never sent
    except KeyboardInterrupt:
        is_stopped = True
    settings = {"model_name": config.name, "changed": " ".join(arguments.set), "device": str(predictor.model.device)}
    settings |= {"references": str(len(predictor.references or ()) or "")}
    outputs.finish(settings | {name: getattr(arguments, name) or "" for name in ("class_name", "question")}, language)
    sender.shutdown()
    if not is_json and counts.total() > 1:
        print(texts["summary"].format_map(counts))
    if is_stopped and not watched:
        print(texts["stopped"], file=sys.stderr)
        return INTERRUPTED
    return _exit_code(arguments, counts)


def _exit_code(arguments: Namespace, counts: Counter[str]) -> int:
    failing = counts["defective"] + counts["can't tell"] * (arguments.fail_on == "not-good")
    return 3 if arguments.fail_on and failing else 1 if counts["error"] else 0


def _results(
    arguments: Namespace, predictor: "Predictor", outputs: "Outputs", source: Iterable[dict[Path, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields the result of each photo, with what ``source`` knows of its file, once its pictures are written."""
    size = max(1, arguments.batch_size)
    for known in source:
        photos = read_photos(known, size)
        while batch := list(islice(photos, size)):
            readable = [photo for _, photo in batch if not isinstance(photo, DatasetError)]
            predictions = predictor.predict_batch(readable, arguments.question, arguments.class_name)
            for path, photo in batch:
                result = {"photo": str(path), **known[path]}
                if isinstance(photo, DatasetError):
                    result["error"] = str(photo)
                else:
                    prediction = next(predictions)
                    result |= prediction.to_dict() | outputs.write_pictures(path, prediction)
                yield result


def read_photos(paths: Iterable[Path], ahead: int = 1) -> "Iterator[tuple[Path, Image.Image | DatasetError]]":
    """Photos, or why they can't be read; a thread reads so many ahead while the caller works on the one before."""
    from anomalygpt.datasets.photos import load_image

    def read(path: Path) -> "tuple[Path, Image.Image | DatasetError]":
        try:
            return path, load_image(path)
        except DatasetError as error:
            return path, error

    with ThreadPoolExecutor(1) as pool:
        begun = (pool.submit(read, path) for path in paths)
        waiting = deque(islice(begun, ahead))
        while waiting:
            waiting += islice(begun, 1)
            yield waiting.popleft().result()


def expand(patterns: Sequence[str], recursive: bool = False) -> list[Path]:
    """Photos, folders (``recursive``: and below) and globs -> photos, in order, each once; UserError: nothing there."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))
        files = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        matches = find_photos(path, recursive) if path.is_dir() else [file for file in files if not file.is_dir()]
        if not matches:
            raise UserError(f"{pattern}: no photo there; expected an image file, a folder of images, or a pattern")
        found |= dict.fromkeys(matches)
    return without_results(found)


def new_photos(
    folder: Path, earlier: Iterable[dict[str, Any]], recursive: bool, out: Path
) -> Iterator[dict[Path, dict[str, Any]]]:
    """Yields, for ever, the complete photos in a folder that the earlier results don't hold; those in ``out`` are none.

    Each comes with its size in bytes and its time: a file that was overwritten is a new one.
    """
    known = {(each["photo"], each.get("bytes"), each.get("modified")) for each in earlier}
    before = set[tuple[str, int, float]]()
    while True:
        if not folder.is_dir():
            reading_warning(f"{folder}: no such folder; waiting for it")
        now = set()
        for path in folder.rglob("*") if recursive else folder.glob("*"):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.parent != out:
                with suppress(OSError):  # gone again
                    state = path.stat()
                    now |= {(str(path), state.st_size, state.st_mtime)} if state.st_size else set()
        if complete := sorted((now & before) - known, key=itemgetter(2)):
            yield {Path(path): {"bytes": size, "modified": modified} for path, size, modified in complete}
        known |= {*complete}
        before = now
        time.sleep(INTERVAL)


def post(url: str, result: dict[str, Any]) -> None:
    """Sends a result as JSON; after some tries in vain, a warning says so."""
    from urllib3 import PoolManager, Retry
    from urllib3.exceptions import HTTPError

    retries = Retry(4, backoff_factor=1, status_forcelist=range(400, 600), allowed_methods=None)
    try:
        PoolManager().request("POST", url, json=result, timeout=10, retries=retries)
    except HTTPError as error:
        print(f"warning: {result['photo']}: not sent to --post ({error})", file=sys.stderr)


if __name__ == "__main__":
    code = main()
    if "ray" not in sys.modules:  # whose cluster ends with Python
        os._exit(code)  # Python's own end takes half a second, in which it searches all of torch's objects for garbage
    sys.exit(code)
