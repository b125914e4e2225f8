"""Inspects photos: ``python predict.py PHOTO… [--reference GOOD…] [--question "…"] [--json] [--out DIR]``.

Good photos of a part are encoded once, ``python predict.py --reference GOOD… --save-references FILE``, and used again
with ``--references FILE``.
"""

import argparse
import glob
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from anomalygpt.config.load import load_config, stated
from anomalygpt.datasets.records import MAP, OVERLAY, DatasetError, find_photos, own_results
from anomalygpt.errors import UserError, set_strict, user_errors
from anomalygpt.files import replacing

if TYPE_CHECKING:
    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.config.settings import PhotoSettings
    from anomalygpt.inference.predictor import Predictor
    from anomalygpt.inference.results import Prediction

ANSWER_NOTES = {
    "model": "",
    "corrected": "  (corrected: the language model's own answer contradicted the findings)",
    "findings": "  (from the findings: the language model gave no answer that agrees with them)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when every photo was read, 1 when some could not be; verdicts do not change it."""
    arguments = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_strict(arguments.strict)
    if arguments.ignore:
        arguments.set.append(f"data.ignore={json.dumps(arguments.ignore)}")
    with user_errors():
        from anomalygpt.model.build import installed_config

        return _run(arguments, load_config(arguments.config or installed_config(), arguments.set))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Detect and locate defects of parts in photos.")
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="photos, folders of photos, or glob patterns")
    parser.add_argument(
        "--reference", nargs="+", action="extend", default=[], metavar="GOOD", help="good photos of the same part"
    )
    parser.add_argument("--references", type=Path, metavar="FILE", help="a file that --save-references wrote")
    parser.add_argument("--save-references", type=Path, metavar="FILE", help="save them to a .safetensors file")
    for label in ("good", "bad"):
        taught = f"photos that a person calls {label}: the verdict learns from them, and --save-references keeps that"
        parser.add_argument(f"--{label}", nargs="+", action="extend", default=[], metavar="FILE", help=taught)
    adapt = "let the verdict learn from the photos as they come, without labels; needs references"
    parser.add_argument("--adapt", action="store_true", help=adapt)
    forget = "forget what --good, --bad and --adapt taught the --references FILE"
    parser.add_argument("--forget", action="store_true", help=forget)
    unlabelled = "without references: the photos, dozens of one part and most of them good, judge each other"
    parser.add_argument("--unlabelled", action="store_true", help=unlabelled)
    parser.add_argument("--question", help="by default: is there any anomaly in the image?")
    parser.add_argument("--class-name", help="what the photos show, as in 'screw'")
    parser.add_argument("--json", action="store_true", help="one JSON object a photo, on standard output")
    parser.add_argument("--out", type=Path, help="folder for overlays (PNG), maps (32-bit float TIFF), results.json")
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
    from tqdm import tqdm

    from anomalygpt.datasets.photos import configure, load_image
    from anomalygpt.inference.predictor import Predictor

    _check(arguments)
    configure(_photo_settings(arguments, config))
    queries, references = (expand(given, arguments.recursive) for given in (arguments.photos, arguments.reference))
    good = [load_image(path) for path in references]  # before the model is loaded, because that takes long
    if arguments.out:
        with _writing(arguments.out):
            arguments.out.mkdir(parents=True, exist_ok=True)
    stems = output_stems(queries)
    predictor = Predictor.from_config(config, arguments.device, with_llm=bool(queries) and not arguments.no_chat)
    if arguments.references:
        predictor.load_references(arguments.references)
    predictor.add_references(good)
    _teach(arguments, predictor)
    if arguments.unlabelled:
        predictor.set_unlabelled(_readable(queries))
    if predictor.references:
        print(*predictor.report().lines(), sep="\n", file=sys.stderr)
    if arguments.save_references:
        predictor.save_references(arguments.save_references)
    results, failed = [], 0
    for path in tqdm(queries, unit="photo", disable=len(queries) == 1 or not sys.stderr.isatty()):
        try:
            photo = load_image(path)
        except DatasetError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        prediction = predictor.predict(photo, arguments.question, arguments.class_name)
        result = {"photo": str(path), **prediction.to_dict()}
        if arguments.out:
            result |= write_pictures(arguments.out, stems[path], photo, prediction)
        results.append(result)
        tqdm.write(json.dumps(result, ensure_ascii=False) if arguments.json else as_text(result), file=sys.stdout)
    if arguments.adapt and arguments.save_references:
        predictor.save_references(arguments.save_references)  # with what these photos taught
    if arguments.out:
        with _writing(arguments.out), replacing(arguments.out / "results.json") as temporary:
            temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _teach(arguments: argparse.Namespace, predictor: "Predictor") -> None:
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


def _readable(paths: Sequence[Path]) -> Iterator[Image.Image]:
    """The photos that can be read; the others are reported when their turn comes."""
    from anomalygpt.datasets.photos import load_image

    for path in paths:
        with suppress(DatasetError):
            yield load_image(path)


def _check(arguments: argparse.Namespace) -> None:
    """Raises :class:`UserError` if there is nothing to do, options contradict each other, or a file is missing."""
    if not arguments.photos and not arguments.save_references:
        raise UserError("no photo given; expected photos to inspect, or --save-references FILE with --reference GOOD …")
    if arguments.save_references and not (arguments.reference or arguments.references):
        raise UserError(f"--save-references {arguments.save_references}: needs good photos, --reference GOOD …")
    if arguments.unlabelled and (arguments.reference or arguments.references):
        raise UserError("--unlabelled: the photos judge each other, so it takes no --reference and no --references")
    if not arguments.references:
        return
    if arguments.references.is_dir():
        raise UserError(f"--references {arguments.references}: a folder; expected a file that --save-references made")
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


def as_text(result: dict[str, Any]) -> str:
    """A result for people."""
    verdict = f"can't tell ({result['reason']})" if result["reason"] else "DEFECT" if result["is_anomalous"] else "good"
    numbers = ", ".join(f"{name} {result[name]:.3f}" for name in ("probability", "score", "threshold"))
    lines = [f"{result['photo']}: {verdict}, by the {result['verdict_from']} ({numbers})"]
    lines += [f"  {result['answer']}{ANSWER_NOTES[result['answer_source']]}"] if result["answer"] else []
    if not result["answer_agrees"] and result["verdict_from"] == "answer":
        marked = "the map marks what follows" if result["regions"] else "the map marks no region"
        lines.append(f"  The score contradicts the answer: {marked}")
    for region in result["regions"]:
        lines.append(f"  {region['position']}: box {tuple(region['box'])}, {100 * region['area']:.1f} % of the photo")
    return "\n".join(lines)


def output_stems(paths: Sequence[Path]) -> dict[Path, str]:
    """Photo -> beginning of its results' file names: its last folders and name, numbered where that is taken."""
    stems: dict[Path, str] = {}
    count: dict[str, int] = {}  # of the photos of each stem
    for path in paths:
        parts = [part for part in path.with_suffix("").parts if part not in (path.anchor, "..")]
        stem = "_".join(parts[-3:])  # test/crack/000.png and test/good/000.png stay apart
        numbered = stem
        while numbered in count:  # a photo's own name may end in ~2
            count[stem] += 1
            numbered = f"{stem}~{count[stem]}"
        count[numbered] = 1
        stems[path] = numbered
    return stems


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {folder}: can't be written ({error})") from error


def write_pictures(folder: Path, stem: str, photo: Image.Image, prediction: "Prediction") -> dict[str, str]:
    """Writes a photo's overlay and float map, each atomically.

    Returns:
        "overlay" and "map" -> file name.

    Raises:
        UserError: they can't be written.
    """
    from anomalygpt.inference.visualize import overlay

    image = prediction.image
    pictures = {
        "overlay": (f"{stem}{OVERLAY}", overlay(photo, image.map, image.threshold, image.regions)),
        "map": (f"{stem}{MAP}", Image.fromarray(image.map)),
    }
    for name, picture in pictures.values():
        with _writing(folder), replacing(folder / name) as temporary:
            picture.save(temporary)
    return {kind: name for kind, (name, _) in pictures.items()}


if __name__ == "__main__":
    sys.exit(main())
