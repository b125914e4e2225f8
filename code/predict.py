"""Inspects photos: ``python predict.py PHOTO… [--reference GOOD…] [--question "…"] [--json] [--out DIR]``.

Good photos of a part are encoded once, ``python predict.py --reference GOOD… --save-references FILE``, and used again
with ``--references FILE``. All options, files and exit codes: ``docs/predict.md``.
"""

import glob
import json
import logging
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalygpt.config.load import load_config, stated
from anomalygpt.datasets.records import DatasetError, find_photos, own_results
from anomalygpt.errors import UserError, set_strict, user_errors

if TYPE_CHECKING:
    from PIL import Image

    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.config.settings import PhotoSettings
    from anomalygpt.datasets.findings import Language
    from anomalygpt.inference.outputs import Outputs
    from anomalygpt.inference.predictor import Predictor

MARKS = {"good": ("✓", 32), "defective": ("✗", 31), "can't tell": ("?", 33)}  # with their colours on a terminal
INTERRUPTED = 130  # the exit code after Ctrl-C

Result = dict[str, Any]  # of a photo, as a line of results.jsonl
Source = Iterable[dict[Path, dict[str, Any]]]  # photos, each with what is known of its file


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when every photo was read, 1 when some could not be, 130 after Ctrl-C; 3 by ``--fail-on``."""
    arguments = _parse(argv)
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may hold what the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_strict(arguments.strict)
    if arguments.ignore:
        arguments.set.append(f"data.ignore={json.dumps(arguments.ignore)}")
    if arguments.backend:
        arguments.set.append(f"encoder.backend={arguments.backend}")
    with user_errors():
        from anomalygpt.model.build import installed_config

        try:
            return _run(arguments, load_config(arguments.config or installed_config(), arguments.set))
        except KeyboardInterrupt:
            return INTERRUPTED


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description="Detect and locate defects of parts in photos.")
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="photos, folders of photos, or glob patterns")
    add("--reference", nargs="+", action="extend", default=[], metavar="GOOD", help="good photos of the same part")
    saved = "a file that --save-references wrote, or a folder of good photos"
    add("--references", type=Path, metavar="FILE|FOLDER", help=saved)
    add("--save-references", type=Path, metavar="FILE", help="save them to a .safetensors file")
    for label in ("good", "bad"):
        taught = f"photos that a person calls {label}: the verdict learns from them, and --save-references keeps that"
        add(f"--{label}", nargs="+", action="extend", default=[], metavar="FILE", help=taught)
    adapt = "let the verdict learn from the photos as they come, without labels; needs references"
    add("--adapt", action="store_true", help=adapt)
    add("--forget", action="store_true", help="forget what --good, --bad and --adapt taught the --references FILE")
    unlabelled = "without references: the photos, dozens of one part and most of them good, judge each other"
    add("--unlabelled", action="store_true", help=unlabelled)
    add("--question", help="by default: is there any anomaly in the image?")
    add("--class-name", help="what the photos show, as in 'screw'")
    add("--json", action="store_true", help="one JSON object a photo, on standard output")
    add("--out", type=Path, help="folder for overlays, maps (float TIFF), results.jsonl, results.csv, report.html")
    add("--coco", type=Path, metavar="FILE", help="regions as a COCO data set (JSON)")
    add("--watch", type=Path, metavar="DIR", help="inspect what comes into a folder until Ctrl-C; needs --out")
    add("--post", metavar="URL", help="also send each result there, as JSON by POST")
    add("--batch-size", type=int, default=1, metavar="N", help="photos that are encoded at once")
    fail_on = "exit with 3 if a photo was defective; not-good: or undecided"
    add("--fail-on", choices=("defective", "not-good"), help=fail_on)
    add("--lang", choices=("auto", "en", "zh"), default="auto", help="of the lines and the report")
    add("--no-chat", action="store_true", help="maps and scores only: no language model is loaded")
    add("--recursive", action="store_true", help="photos and references in sub-folders, too")
    box = "excluded on every photo: a mask, or left,top,right,bottom in pixels or fractions"
    add("--ignore", metavar="MASK|BOX", help=box)
    add("--strict", action="store_true", help="warnings about how files were read are errors")
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--backend", choices=("torch", "onnx", "openvino", "openvino_bf16"), help="what encodes photos on a CPU")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    return parser.parse_args(argv)


def _run(arguments: Namespace, config: "ExperimentConfig") -> int:
    from anomalygpt.datasets.photos import configure, load_image
    from anomalygpt.inference.outputs import Outputs
    from anomalygpt.inference.predictor import Predictor

    _check(arguments)
    configure(_photo_settings(arguments, config))
    given = arguments.photos, arguments.reference
    arguments.photos, references = (expand(patterns, arguments.recursive) for patterns in given)
    good = [load_image(path) for path in references]  # before the model is loaded, because that takes long
    has_photos = bool(arguments.photos or arguments.watch)
    outputs = Outputs(arguments.out if has_photos else None, arguments.coco, resumed=bool(arguments.watch))
    predictor = Predictor.from_config(config, arguments.device, with_llm=has_photos and not arguments.no_chat)
    if arguments.references:
        predictor.load_references(arguments.references)
    predictor.add_references(good)
    _teach(arguments, predictor)
    if arguments.unlabelled:
        predictor.set_unlabelled(_readable(arguments.photos))
    if predictor.references:
        print(*predictor.report().lines(_language(arguments)), sep="\n", file=sys.stderr)
    if arguments.save_references:
        predictor.save_references(arguments.save_references)
    code = _inspect(arguments, config, predictor, outputs) if has_photos else 0
    if arguments.adapt and arguments.save_references:
        predictor.save_references(arguments.save_references)  # with what these photos taught
    return code


def _language(arguments: Namespace) -> "Language":
    from anomalygpt.inference.report import system_language

    return system_language() if arguments.lang == "auto" else arguments.lang


def _teach(arguments: Namespace, predictor: "Predictor") -> None:
    from anomalygpt.datasets.photos import load_image
    from anomalygpt.model.anomalygpt import UNNAMED_CLASS

    if arguments.forget:
        predictor.forget_feedback()
    for paths, is_good in ((arguments.good, True), (arguments.bad, False)):
        for path in expand(paths, arguments.recursive):
            predictor.feedback(predictor.inspect(load_image(path), arguments.class_name or UNNAMED_CLASS), is_good)
    if arguments.adapt and predictor.references is None:
        raise UserError("--adapt: needs references, --reference GOOD … or --references FILE")
    predictor.adapts = arguments.adapt


def _readable(paths: Sequence[Path]) -> "Iterator[Image.Image]":
    """The photos that can be read; the others are reported when their turn comes."""
    from anomalygpt.datasets.photos import load_image

    for path in paths:
        with suppress(DatasetError):
            yield load_image(path)


def _inspect(arguments: Namespace, config: "ExperimentConfig", predictor: "Predictor", outputs: "Outputs") -> int:
    """Inspects the photos, or what comes into the watched folder; prints and writes the results: the exit code."""
    from tqdm import tqdm

    from anomalygpt.datasets.dialogue import detection_question
    from anomalygpt.inference.report import report_texts, verdict
    from anomalygpt.inference.watch import new_photos, post

    watched, is_json = arguments.watch, bool(arguments.json or arguments.watch)
    language = _language(arguments)
    texts, colour = report_texts(language), sys.stdout.isatty() and "NO_COLOR" not in os.environ
    # Without findings, the model reads English only, and its answer is the verdict.
    if language == "zh" and not is_json and predictor.language_model and config.inference.findings != "none":
        arguments.question = arguments.question or detection_question(arguments.class_name, None, False, language)
    source: Source = [{path: {} for path in arguments.photos}]
    if watched:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemctl stop and docker stop send it
        source = new_photos(watched.resolve(), outputs.earlier, arguments.recursive, arguments.out.resolve())
        print(texts["watching"].format(folder=watched), file=sys.stderr)
    results = _results(arguments, predictor, outputs, source)
    counts, is_stopped, sender = Counter[str](), False, ThreadPoolExecutor(1)
    is_quiet = len(arguments.photos) < 2 or not sys.stderr.isatty()
    try:
        for result in tqdm(results, total=len(arguments.photos), unit="photo", disable=is_quiet):
            counts[verdict(result)] += 1
            if "error" in result:
                tqdm.write(f"error: {result['error']}", file=sys.stderr)
            if watched or "error" not in result:
                line = json.dumps(result, ensure_ascii=False) if is_json else as_text(result, language, colour)
                tqdm.write(line, file=sys.stdout)
            if arguments.post:
                sender.submit(post, arguments.post, result)
    except KeyboardInterrupt:
        is_stopped = True
    sender.shutdown(cancel_futures=is_stopped)
    settings = {"model_name": config.name, "changed": " ".join(arguments.set), "device": str(predictor.model.device)}
    settings |= {"references": str(len(predictor.references or ()) or "")}
    outputs.finish(settings | {name: getattr(arguments, name) or "" for name in ("class_name", "question")}, language)
    if not is_json and counts.total() > 1:
        print(texts["summary"].format_map(counts))
    if is_stopped and not watched:
        print(texts["stopped"], file=sys.stderr)
        return INTERRUPTED
    failing = counts["defective"] + counts["can't tell"] * (arguments.fail_on == "not-good")
    return 3 if arguments.fail_on and failing else 1 if counts["error"] else 0


def _results(arguments: Namespace, predictor: "Predictor", outputs: "Outputs", source: Source) -> Iterator[Result]:
    """Yields the result of each photo, with what the source knows of it, once its files are written."""
    for known in source:
        for batch in read_batches(list(known), arguments.batch_size):
            photos = [photo for _, photo in batch if not isinstance(photo, DatasetError)]
            predictions = predictor.predict_batch(photos, arguments.question, arguments.class_name)
            for path, photo in batch:
                result: Result = {"photo": str(path), **known[path]}
                if isinstance(photo, DatasetError):
                    result["error"] = str(photo)
                else:
                    prediction = next(predictions)
                    result |= prediction.to_dict() | outputs.write_pictures(path, photo, prediction)
                outputs.add(result)
                yield result


def read_batches(paths: Sequence[Path], size: int) -> Iterator[list[tuple[Path, "Image.Image | DatasetError"]]]:
    """Photos, or why they can't be read; a thread reads the next ones while the caller works on these."""
    from anomalygpt.datasets.photos import load_image

    def read(start: int) -> "list[tuple[Path, Image.Image | DatasetError]]":
        batch: list[tuple[Path, Image.Image | DatasetError]] = []
        for path in paths[start : start + size]:
            try:
                batch.append((path, load_image(path)))
            except DatasetError as error:
                batch.append((path, error))
        return batch

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read, 0)
        for start in range(size, len(paths) + size, size):
            current, following = following, pool.submit(read, start)
            yield current.result()


def _check(arguments: Namespace) -> None:
    """Raises :class:`UserError` if there is nothing to do, options contradict each other, or a file is missing."""
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: expected 1 or more")
    if arguments.post and not arguments.post.startswith(("http://", "https://")):
        raise UserError(f"--post {arguments.post}: expected an address that begins with http:// or https://")
    if arguments.watch:
        if not arguments.watch.is_dir():
            raise UserError(f"--watch {arguments.watch}: no such folder")
        if arguments.photos or arguments.coco or not arguments.out:
            raise UserError("--watch: takes no photos and no --coco, and needs --out, which remembers what was done")
    elif not arguments.photos and not arguments.save_references:
        raise UserError("no photo given; expected photos to inspect, or --save-references FILE with --reference GOOD …")
    if arguments.references and arguments.references.is_dir():
        arguments.reference.append(str(arguments.references))
        arguments.references = None
    if arguments.save_references and not (arguments.reference or arguments.references):
        raise UserError(f"--save-references {arguments.save_references}: needs good photos, --reference GOOD …")
    if arguments.unlabelled and (arguments.reference or arguments.references or not arguments.photos):
        raise UserError("--unlabelled: the photos judge each other, so it takes photos and no references")
    if not arguments.references:
        return
    if not arguments.references.is_file():
        raise UserError(f"--references {arguments.references}: no such file; --save-references makes one")
    if "references" in stated(arguments.set).get("inference", {}):
        raise UserError(
            f"--references {arguments.references}: compared with the settings it was saved with; "
            "for other inference.references give the good photos, --reference GOOD …"
        )


def _photo_settings(arguments: Namespace, config: "ExperimentConfig") -> "PhotoSettings":
    """How photos are read: as the saved references were, which the command line may not contradict."""
    from anomalygpt.datasets.ignored import embedded
    from anomalygpt.inference.reference_file import saved_photo_settings

    saved = saved_photo_settings(arguments.references) if arguments.references else None
    if saved is None:
        return config.data
    given = embedded(config.data)
    for name in {*stated(arguments.set).get("data", {})} & {*type(saved).model_fields}:
        if getattr(saved, name) != getattr(given, name):
            advice = "for another one give the good photos, --reference GOOD …"
            raise UserError(f"--references {arguments.references}: saved with another data.{name}; {advice}")
    return saved


def expand(patterns: Sequence[str], recursive: bool = False) -> list[Path]:
    """Photos, folders (with ``recursive`` also what is below them) and globs -> photos, in order, each once.

    Raises:
        UserError: a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = find_photos(path, recursive)
        elif path.exists():
            matches = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            names = {folder: {file.name for file in files} for folder in {file.parent for file in files}}
            own = {folder: own_results(folder, names[folder]) for folder in names}
            matches = [file for file in files if file.name not in own[file.parent]]
        if not matches:
            raise UserError(f"{pattern}: no photo there; expected an image file, a folder of images, or a pattern")
        found |= dict.fromkeys(matches)
    return list(found)


def as_text(result: dict[str, Any], language: "Language" = "en", colour: bool = False) -> str:
    """A result for people: a line with mark, probability, photo, verdict and place, and the answer beneath."""
    from anomalygpt.datasets.findings import probability_text
    from anomalygpt.inference.report import details, report_texts, verdict

    texts, kind = report_texts(language), verdict(result)
    mark, code = MARKS[kind]
    place, percent = details(result, language), probability_text(result["probability"])
    text = texts["detail"].format(verdict=texts[kind], text=place) if place else texts[kind]
    mark = f"\033[{code}m{mark}\033[0m" if colour else mark
    lines = [texts["line"].format(mark=mark, probability=percent, photo=result["photo"], text=text)]
    if result["answer"]:
        lines.append(f"  {result['answer']}{texts.get(result['answer_source'], '')}")
    if not result["answer_agrees"] and result["verdict_from"] == "answer":
        lines.append(f"  {texts['contradicts']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
