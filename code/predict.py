"""Inspects photos: ``python predict.py PHOTO… [--reference GOOD…] [--question "…"] [--json] [--out DIR]``.

Good photos of a part are encoded once, ``python predict.py --reference GOOD… --save-references FILE``, and used again
with ``--references FILE``. All options, files and exit codes: ``docs/predict.md``.
"""

import argparse
import glob
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalygpt.config.load import load_config, stated
from anomalygpt.datasets.records import DatasetError, find_photos, own_results, read_results
from anomalygpt.errors import UserError, set_strict, user_errors
from anomalygpt.files import replacing

if TYPE_CHECKING:
    from PIL import Image

    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.config.settings import PhotoSettings
    from anomalygpt.datasets.findings import Language
    from anomalygpt.inference.coco import Photo
    from anomalygpt.inference.outputs import Outputs
    from anomalygpt.inference.predictor import Predictor
    from anomalygpt.inference.watch import Version

MARKS = {"good": ("✓", 32), "defective": ("✗", 31), "can't tell": ("?", 33)}  # with their colours on a terminal
INTERRUPTED = 130  # the exit code after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when every photo was read, 1 when some could not be, 130 after Ctrl-C; 3 by ``--fail-on``."""
    arguments = _parse(argv)
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may hold what the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_strict(arguments.strict)
    if arguments.ignore:
        arguments.set.append(f"data.ignore={json.dumps(arguments.ignore)}")
    with user_errors():
        from anomalygpt.model.build import installed_config

        try:
            return _run(arguments, load_config(arguments.config or installed_config(), arguments.set))
        except KeyboardInterrupt:
            return INTERRUPTED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Detect and locate defects of parts in photos.")
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="photos, folders of photos, or glob patterns")
    parser.add_argument(
        "--reference", nargs="+", action="extend", default=[], metavar="GOOD", help="good photos of the same part"
    )
    saved = "a file that --save-references wrote, or a folder of good photos"
    parser.add_argument("--references", type=Path, metavar="FILE|FOLDER", help=saved)
    parser.add_argument("--save-references", type=Path, metavar="FILE", help="save them to a .safetensors file")
    parser.add_argument("--question", help="by default: is there any anomaly in the image?")
    parser.add_argument("--class-name", help="what the photos show, as in 'screw'")
    parser.add_argument("--json", action="store_true", help="one JSON object a photo, on standard output")
    out = "folder for overlays (PNG), maps (32-bit float TIFF), results.jsonl, results.csv, report.html"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--coco", type=Path, metavar="FILE", help="regions as a COCO data set (JSON)")
    watch = "inspect what comes into a folder until Ctrl-C, each photo once; needs --out"
    parser.add_argument("--watch", type=Path, metavar="DIR", help=watch)
    parser.add_argument("--post", metavar="URL", help="also send each result there, as JSON by POST")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="photos that are encoded at once")
    fail_on = "exit with 3 if a photo was defective; not-good: or undecided"
    parser.add_argument("--fail-on", choices=("defective", "not-good"), help=fail_on)
    parser.add_argument("--lang", choices=("auto", "en", "zh"), default="auto", help="of the lines and the report")
    parser.add_argument("--no-chat", action="store_true", help="maps and scores only: no language model is loaded")
    parser.add_argument("--recursive", action="store_true", help="photos and references in sub-folders, too")
    box = "excluded on every photo: a mask, or left,top,right,bottom in pixels or fractions"
    parser.add_argument("--ignore", metavar="MASK|BOX", help=box)
    parser.add_argument("--strict", action="store_true", help="warnings about how files were read are errors")
    parser.add_argument("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change"
    )
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace, config: "ExperimentConfig") -> int:
    from anomalygpt.datasets.photos import configure, load_image
    from anomalygpt.inference.outputs import writing
    from anomalygpt.inference.predictor import Predictor

    _check(arguments)
    configure(_photo_settings(arguments, config))
    queries, references = (expand(given, arguments.recursive) for given in (arguments.photos, arguments.reference))
    good = [load_image(path) for path in references]  # before the model is loaded, because that takes long
    for folder, option in ((arguments.out, "--out"), (arguments.coco and arguments.coco.parent, "--coco")):
        if folder:
            with writing(folder, option):
                folder.mkdir(parents=True, exist_ok=True)
    needs_words = bool(queries or arguments.watch) and not arguments.no_chat
    predictor = Predictor.from_config(config, arguments.device, with_llm=needs_words)
    if arguments.references:
        predictor.load_references(arguments.references)
    predictor.add_references(good)
    if predictor.references:
        print(*predictor.report().lines(), sep="\n", file=sys.stderr)
    if arguments.save_references:
        predictor.save_references(arguments.save_references)
    return _inspect_all(arguments, config, predictor, queries) if queries or arguments.watch else 0


def _inspect_all(
    arguments: argparse.Namespace, config: "ExperimentConfig", predictor: "Predictor", queries: Sequence[Path]
) -> int:
    """Inspects the photos or what comes into the watched folder, prints and writes the results: the exit code."""
    from tqdm import tqdm

    from anomalygpt.datasets.dialogue import detection_question
    from anomalygpt.inference.coco import Photo, coco_dataset
    from anomalygpt.inference.outputs import REPORT, Outputs, writing
    from anomalygpt.inference.report import report_texts, summary, system_language, verdict
    from anomalygpt.inference.watch import Version, Webhook, new_photos

    out, watched, is_json = arguments.out, arguments.watch, arguments.json or arguments.watch
    language = system_language() if arguments.lang == "auto" else arguments.lang
    texts, colour = report_texts(language), sys.stdout.isatty() and "NO_COLOR" not in os.environ
    question = arguments.question
    if not question and language == "zh" and not is_json and config.inference.findings != "none":
        question = detection_question(arguments.class_name, with_description=False, language=language)
    source: Iterable[dict[Path, Version]] = [{path: {} for path in queries}]
    if watched:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemctl stop and docker stop send it
        source = new_photos(watched, read_results(out), arguments.recursive, out)
        print(texts["watching"].format(folder=watched), file=sys.stderr)
    outputs = Outputs(out, resumed=bool(watched)) if out else None
    webhook = Webhook(arguments.post) if arguments.post else None
    coco: dict[Path, Photo] = {}
    counts, is_stopped = Counter[str](), False
    results = _results(arguments, predictor, question, source, outputs, coco)
    is_quiet = len(queries) < 2 or not sys.stderr.isatty()
    try:
        for result in tqdm(results, total=len(queries), unit="photo", disable=is_quiet):
            counts[verdict(result)] += 1
            if "error" in result:
                tqdm.write(f"error: {result['error']}", file=sys.stderr)
            if watched or "error" not in result:
                line = json.dumps(result, ensure_ascii=False) if is_json else as_text(result, language, colour)
                tqdm.write(line, file=sys.stdout)
            if webhook:
                webhook.send(result)
    except KeyboardInterrupt:
        is_stopped = True
    if outputs:
        outputs.write_report(_settings(arguments, config, predictor, question, language), language)
    if arguments.coco:
        with writing(arguments.coco, "--coco"), replacing(arguments.coco) as temporary:
            temporary.write_text(json.dumps(coco_dataset(coco)), encoding="utf-8")
    if webhook:
        webhook.close(at_once=is_stopped)
    if not is_json and counts.total() > 1:
        print(summary(counts, language), *[texts["written"].format(path=out / REPORT)] * bool(out), sep="\n")
    if is_stopped and not watched:
        print(texts["stopped"], file=sys.stderr)
        return INTERRUPTED
    failing = counts["defective"] + counts["can't tell"] * (arguments.fail_on == "not-good")
    return 3 if arguments.fail_on and failing else 1 if counts["error"] else 0


def _results(
    arguments: argparse.Namespace,
    predictor: "Predictor",
    question: str | None,
    source: "Iterable[dict[Path, Version]]",
    outputs: "Outputs | None",
    coco: "dict[Path, Photo]",
) -> Iterator[dict[str, Any]]:
    """Yields the result of each photo once its files are written."""
    from anomalygpt.inference.coco import coco_annotations

    for versions in source:
        for batch in read_batches(list(versions), arguments.batch_size):
            photos = [photo for _, photo in batch if not isinstance(photo, DatasetError)]
            predictions = predictor.predict_batch(photos, question, arguments.class_name)
            for path, photo in batch:
                result: dict[str, Any] = {"photo": str(path), **versions[path]}
                if isinstance(photo, DatasetError):
                    result["error"] = str(photo)
                else:
                    prediction = next(predictions)
                    result |= prediction.to_dict()
                    if outputs:
                        result |= outputs.write_pictures(path, photo, prediction)
                    if arguments.coco:
                        coco[path] = photo.size, coco_annotations(prediction.image)
                if outputs:
                    outputs.add(result)
                yield result


def read_batches(paths: Sequence[Path], size: int) -> Iterator[list[tuple[Path, "Image.Image | DatasetError"]]]:
    """Photos, or why they can't be read; a thread reads the next ones while the caller works on these."""
    from anomalygpt.datasets.photos import load_image

    def read(path: Path) -> "tuple[Path, Image.Image | DatasetError]":
        try:
            return path, load_image(path)
        except DatasetError as error:
            return path, error

    with ThreadPoolExecutor(1) as pool:
        reading = None
        for start in range(0, len(paths) + size, size):
            current, reading = reading, pool.submit(lambda part: [*map(read, part)], paths[start : start + size])
            if current:
                yield current.result()


def _settings(
    arguments: argparse.Namespace,
    config: "ExperimentConfig",
    predictor: "Predictor",
    question: str | None,
    language: "Language",
) -> dict[str, str]:
    """What the report names, empty where there is none."""
    from anomalygpt.datasets.findings import finding_phrases

    count, forms = len(predictor.references or ()), finding_phrases(language)["words"]["references"]
    return {
        "model": config.name,
        "references": forms["one" if count == 1 else "several"].format(count=count) if count else "",
        "class_name": arguments.class_name or "",
        "question": question or "",
        "changed": " ".join(arguments.set),
        "device": str(predictor.model.device),
    }


def _check(arguments: argparse.Namespace) -> None:
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
    if not arguments.references:
        return
    if not arguments.references.is_file():
        raise UserError(f"--references {arguments.references}: no such file; --save-references makes one")
    if "references" in stated(arguments.set).get("inference", {}):
        raise UserError(
            f"--references {arguments.references}: compared with the settings it was saved with; "
            "for other inference.references give the good photos, --reference GOOD …"
        )


def _photo_settings(arguments: argparse.Namespace, config: "ExperimentConfig") -> "PhotoSettings":
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
