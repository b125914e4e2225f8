"""Indexes photos whose defects are marked by shapes: COCO's JSON, YOLO's text files, LabelMe's JSON."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from anomalygpt.datasets.photos import decoding
from anomalygpt.datasets.records import GOOD, DatasetError, ImageRecord, Split, choose_classes, find_photos
from anomalygpt.datasets.tree import is_called, split_called
from anomalygpt.errors import first_offenders, reading_warning
from anomalygpt.files import read_yaml

Size = tuple[int, int]  # width, height
Shapes = list[tuple[str, Any]]  # label; numbers x, y, x, y … in pixels, or a mask (H, W) of COCO's run lengths
Annotated = tuple[Path, Split | None, Shapes, Path]  # photo, split if anything names one, shapes, the file of them


def draw_shapes(path: Path, photo: Path, size: Size) -> Image.Image:
    """What COCO's, LabelMe's or YOLO's file marks on an upright photo: mode L, 0 and 255, ``good`` left out."""
    if path.suffix == ".txt":
        shapes = _yolo_shapes(path, size)
    else:
        photos = _json_shapes(path)
        size, shapes = photos[max(photos, key=lambda name: len(name) * photo.as_posix().endswith(f"/{name}"))]
    image = Image.new("L", size)
    for _, shape in _defects(shapes):
        if isinstance(shape, np.ndarray):
            image.paste(255, mask=Image.fromarray(shape))
        else:
            ImageDraw.Draw(image).polygon(shape, fill=255)
    return image


def index_annotated(
    read: Callable[[Path], Iterable[Annotated]], root: Path, classes: Sequence[str] | None = None, name: str = ""
) -> list[ImageRecord]:
    """The photos that ``read`` finds in a folder, as one class; a photo without shapes is normal.

    Photos whose split has no name are tested; so are those of ``val`` without a ``test``. Raises :class:`DatasetError`.
    """
    root = root.resolve()
    [name] = choose_classes(root, [name or root.name], classes)
    for cached in (_json_shapes, _yolo_table):  # files may have changed since
        cached.cache_clear()
    photos = list(read(root))
    if not photos:
        raise DatasetError(f"{root}: no annotations of this kind; data/README.md shows them")
    if missing := [image for image, *_ in photos if not image.is_file()]:
        raise DatasetError(f"{root}: {len(missing)} annotated photos are not there: the first is {missing[0]}")
    if not any(source.is_file() for *_, source in photos):
        raise DatasetError(f"{root}: no photo has its file of labels; that of the first would be {photos[0][3]}")
    sources = dict[Path, Path]()
    for image, *_, source in photos:
        if (other := sources.setdefault(image, source)) != source:
            raise DatasetError(f"{image}: is in {source} and in {other}; expected its annotations in one file")
    if read is _coco and (others := sorted({*find_photos(root, recursive=True)} - {*sources})):
        reading_warning(f"{root}: {len(others)} photos that no JSON file lists are not read: {first_offenders(others)}")
    splits = {split for _, split, *_ in photos}
    if None in splits:
        reading_warning(f"{root}: photos outside of files or folders called train or test are tested, and none trains")
    is_val_tested = not splits & {None, "test"}
    records = []
    for image, split, shapes, source in photos:
        kinds = sorted({label for label, _ in _defects(shapes)})
        where: Split = "test" if split is None or (split == "validation" and is_val_tested) else split
        masks = (source,) if kinds else ()
        records.append(ImageRecord(image, name, where, bool(kinds), ",".join(kinds) or GOOD, masks))
    return sorted(records)


def _coco(root: Path) -> Iterator[Annotated]:
    """``annotations/instances_train2017.json`` with ``train2017/``, or ``train/_annotations.coco.json``."""
    folders = [Path(folder) for folder, _, _ in os.walk(root)]
    for path in sorted([*root.glob("*.json"), *root.glob("*/*.json")]):
        split = _split_in([*path.relative_to(root).parts[:-1], path.stem])
        # A photo of another split may have the same name.
        places = [place for place in folders if _split_in(place.relative_to(root).parts) in (None, split)]
        ranks = {place: (place != path.parent, split not in (None, _split_in(place.parts[-1:]))) for place in places}
        for name, (_, own) in _json_shapes(path).items():
            found = sorted((rank, place / name) for place, rank in ranks.items() if (place / name).is_file())
            if len(found) > 1 and found[0][0] == found[1][0]:
                raise DatasetError(f"{path}: {name} may be {found[0][1]} or {found[1][1]}; move one of them elsewhere")
            yield found[0][1] if found else path.parent / name, split, own, path


@lru_cache(maxsize=8)
def _json_shapes(path: Path) -> dict[str, tuple[Size, Shapes]]:
    """Size and shapes of each photo, by its name in COCO's or LabelMe's JSON; none for another JSON file."""
    with decoding(path, "annotations"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        content = content if isinstance(content, dict) else {}
        if "shapes" in content:
            size = content["imageWidth"], content["imageHeight"]
            name = PureWindowsPath(content["imagePath"]).as_posix()
            return {name: (size, [*map(_labelme_shape, content["shapes"])])}
        if not {"images", "annotations", "categories"} <= {*content}:
            return {}
        labels = {category["id"]: str(category["name"]) for category in content["categories"]}
        photos = {photo["id"]: ((photo["width"], photo["height"]), Shapes()) for photo in content["images"]}
        for entry in content["annotations"]:
            shapes = _coco_entry(entry)
            photos[entry["image_id"]][1].extend((labels[entry["category_id"]], shape) for shape in shapes)
        names = {photo["id"]: PureWindowsPath(photo["file_name"]).as_posix() for photo in content["images"]}
        return {names[number].lstrip("/"): found for number, found in photos.items()}


def _coco_entry(entry: dict[str, Any]) -> list[Any]:
    drawn = entry.get("segmentation")
    if not isinstance(drawn, dict):
        left, top, width, height = entry.get("bbox") or (0, 0, 0, 0)
        if not drawn and not width * height:
            raise ValueError(f"annotation {entry.get('id')} has neither segmentation nor bbox; expected one")
        return drawn or [_box(left, top, left + width, top + height)]
    if isinstance(drawn["counts"], str):
        raise ValueError("compressed run lengths; export polygons, or run lengths as numbers")
    pixels = np.repeat(np.arange(len(drawn["counts"])) % 2 == 1, drawn["counts"])
    return [pixels.reshape(drawn["size"][::-1]).T]


def _yolo(root: Path) -> Iterator[Annotated]:
    """The photos of the folders or lists that data.yaml names; ``images/x.png`` has its shapes in ``labels/x.txt``."""
    table = _yolo_table(root)
    if table is None:
        raise DatasetError(f"{root}: no data.yaml with names, train and val")
    base = root / str(table.get("path", ""))
    for key, places in table.items():
        for place in filter(None, places if isinstance(places, list) else [places]) if split_called(key) else ():
            tries = (base / place, root / place, root / place.removeprefix("../"))  # the last as Roboflow writes it
            found = next((path for path in tries if path.exists()), base / place)
            if found.is_dir():
                images = find_photos(found, recursive=True)
            else:
                with decoding(found, "a list of photos"):
                    lines = found.read_text("utf-8-sig").replace("\\", "/").splitlines()
                    images = [found.parent / line.strip() for line in lines if line.strip()]
            for image in images:
                before, inside, after = image.with_suffix(".txt").as_posix().rpartition("/images/")
                label = Path(f"{before}/labels/{after}" if inside else after)
                yield image, split_called(key), _yolo_shapes(label, (1, 1)) if label.is_file() else [], label


@lru_cache(maxsize=64)
def _yolo_table(folder: Path) -> dict[str, Any] | None:
    tables = (read_yaml(path) for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]))
    return next((table for table in tables if isinstance(table, dict) and "names" in table), None)


def _yolo_shapes(path: Path, size: Size) -> Shapes:
    """Of each line the class's number, and centre and size of a box or the points of a polygon, as fractions."""
    tables = map(_yolo_table, list(path.parents)[:4])
    table: dict[str, Any] = next(filter(None, tables), {"names": {}})
    names = table["names"].items() if isinstance(table["names"], dict) else enumerate(table["names"])
    labels = {str(number): str(name) for number, name in names}
    shapes: Shapes = []
    with decoding(path, "annotations"):
        for number, *rest in (line.split() for line in path.read_text("utf-8-sig").splitlines() if line.strip()):
            points = [float(value) * size[at % 2] for at, value in enumerate(rest)]
            if len(points) == 4:
                x, y, width, height = points
                points = _box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            elif len(points) < 6 or len(points) % 2:
                raise ValueError(f"{len(points)} numbers after a class; expected 4 of a box or pairs of a polygon")
            shapes.append((labels.get(str(int(float(number))), f"class {number}"), points))
    return shapes


def _labelme(root: Path) -> Iterator[Annotated]:
    """Photos with a JSON file, and those without one, which count as normal."""
    read = ((path, _json_shapes(path)) for path in sorted(root.rglob("*.json")))
    marked = [((path.parent / name).resolve(), own, path) for path, of in read for name, (_, own) in of.items()]
    others = {*find_photos(root, recursive=True)} - {photo for photo, *_ in marked}
    for photo, shapes, path in [*marked, *((photo, Shapes(), photo) for photo in others)] if marked else ():
        yield photo, _split_in(photo.parts[len(root.parts) : -1]), shapes, path


def _labelme_shape(entry: dict[str, Any]) -> tuple[str, list[float]]:
    kind, points = entry.get("shape_type") or "polygon", [number for point in entry["points"] for number in point]
    if kind == "rectangle":
        points = _box(min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))
    elif kind == "circle":
        angles, radius = np.arange(63) / 10, math.dist(points[:2], points[2:])
        points = (points[:2] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).ravel().tolist()
    elif kind != "polygon":
        raise ValueError(f"a shape {kind}; expected polygon, rectangle or circle")
    return str(entry["label"]), points


def _defects(shapes: Shapes) -> Shapes:
    return [(label, shape) for label, shape in shapes if not is_called(label, "good")]


def _split_in(parts: Iterable[str]) -> Split | None:
    """The split that one of some names holds as a word, as in ``instances_train2017``."""
    words = re.split(r"[\W\d_]+", " ".join(parts))
    return next((split for word in words if word and (split := split_called(word))), None)


def _box(left: float, top: float, right: float, bottom: float) -> list[float]:
    right, bottom = max(left, right - 1), max(top, bottom - 1)  # a filled polygon includes its border
    return [left, top, right, top, right, bottom, left, bottom]


index_coco, index_yolo, index_labelme = (partial(index_annotated, read) for read in (_coco, _yolo, _labelme))
