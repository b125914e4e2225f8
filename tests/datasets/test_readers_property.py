"""Readers of masks, trees and tables on generated input: each answer is right or one line, and the same twice.

More examples: ``READER_EXAMPLES=100000 python -m pytest tests/datasets/test_readers_property.py -q --timeout 0``.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from anomalygpt.datasets.csv_table import index_csv
from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.datasets.tree import index_tree, names
from anomalygpt.errors import set_strict

many = settings(
    max_examples=int(os.environ.get("READER_EXAMPLES", "1000")),  # two tests a reader
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def twice(read):
    """What reading gives, None for a refusal in one line; the same at each reading."""
    results = []
    for _ in range(2):
        set_strict(False)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # warnings
                results.append(read())
        except DatasetError as error:
            assert "\n" not in str(error)
            results.append(None)
    assert str(results[0]) == str(results[1])
    return results[0]


# -- masks


COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def codings(draw):
    """A mask of less than half of its pixels, and an image that codes it without loss."""
    height, width = draw(st.integers(4, 20)), draw(st.integers(4, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    marked = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(1, 3))):
        top, left = rng.integers(height), rng.integers(width)
        marked[top : top + 1 + height // 4, left : left + 1 + width // 4] = True
    assume(marked.mean() < 0.5)
    labels = np.where(marked, rng.integers(1, draw(st.integers(2, 30)), marked.shape), 0)
    kind = draw(st.sampled_from(["binary", "grey", "labels", "16 bits", "float", "colours", "palette", "alpha", "one"]))
    if kind == "one":
        return marked, Image.fromarray(marked)
    if kind == "binary":
        return marked, Image.fromarray(marked.astype(np.uint8) * np.uint8(draw(st.integers(1, 255))))
    table = np.append(0, rng.permutation(draw(st.sampled_from([30, 255, 65535])))[:30] + 1)
    if kind in ("grey", "labels"):
        return marked, Image.fromarray(np.minimum(table[labels], 255).astype(np.uint8))
    if kind == "16 bits":
        return marked, Image.fromarray(table[labels].astype(np.uint16))
    if kind == "float":
        return marked, Image.fromarray((table[labels] / table.max()).astype(np.float32))
    background = draw(st.one_of(st.just((0, 0, 0)), COLOUR))
    colours = rng.integers(1, 256, (31, 3))
    colours[0] = background
    if any(tuple(colour) == background for colour in colours[1:]):
        colours[1:] = (background[0] // 2 + 1, 255 - background[1] // 2, background[2] // 2 + 3)
    if kind == "palette":
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(colours.astype(np.uint8).ravel().tolist())
        return marked, image
    if kind == "alpha":
        pixels = np.dstack(
            [np.broadcast_to(np.maximum(background, 1), (*marked.shape, 3)), np.minimum(table[labels], 255)]
        )
        return marked, Image.fromarray(pixels.astype(np.uint8))
    return marked, Image.fromarray(colours[labels].astype(np.uint8))


@many
@given(codings(), st.booleans())
def test_masks_are_read_right_or_refused(folder, coded, as_tiff):
    marked, image = coded
    path = folder / f"mask.{'tif' if image.mode == 'F' or as_tiff and image.mode != 'P' else 'png'}"
    image.save(path)
    Image.new("L", image.size).save(folder / "photo.png")
    record = ImageRecord(folder / "photo.png", "disc", "test", True, "cut", (path,))
    found = twice(lambda: ((np.asarray(load_mask(record)) > 25).tolist(), load_mask(record).info["coding"]))
    assert found is None or np.array_equal(found[0], marked), found[1]
    if found is None:
        assert image.mode in ("RGB", "P", "L") and (np.asarray(image.convert("RGB"))[0, 0].any() or marked.mean() > 0.4)


@many
@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"]),
    st.sampled_from(["png", "tif", "jpg", "gif", "webp", "bmp"]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.binary(max_size=500),
    st.integers(0, 9),
)
def test_any_file_as_a_mask_is_read_the_same_twice_or_refused(folder, mode, suffix, size, data, orientation):
    path = folder / f"any.{suffix}"
    pixels = (data or b"\0") * 2000
    try:
        image = Image.frombytes(mode, size, pixels[: len(Image.new(mode, size).tobytes())])
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)
    except (OSError, ValueError, KeyError, TypeError):  # the format has no such mode
        path.write_bytes(data)
    Image.new("L", size).save(folder / "photo.png")
    record = ImageRecord(folder / "photo.png", "disc", "test", True, "cut", (path,))
    twice(lambda: [np.asarray(load_mask(record)).tolist(), load_mask(record).info["coding"]])


# -- trees


def spelt(draw, name):
    """A name of names.yaml with other letters and separators."""
    word = draw(st.sampled_from([str.lower, str.upper, str.title]))(name)
    return word.replace(" ", draw(st.sampled_from(["_", "-", " ", "", "."])))


TABLE = {
    "good": ["good", "ok", "normal", "non defective", "pass", "良品"],
    "bad": ["ng", "bad", "abnormal", "fail", "缺陷"],
}
STEM = st.from_regex(r"[a-z]{1,3}[0-9]{0,3}", fullmatch=True)
SUFFIX = st.sampled_from([".png", ".jpg", ".JPG", ".bmp", ".tif", ".webp"])
MASK = st.sampled_from(
    ["{}", "{}_mask", "{}_gt", "{}.bm", "{}-label", "{}_mask_1", "mask_{}", "{}_1_mask", "{} (2)_mask"]
)


@st.composite
def trees(draw):
    """Files of a tree of one class, and what a reader should find: (split, is anomalous, photo, masks)."""
    good, masks = (
        spelt(draw, draw(st.sampled_from(TABLE["good"]))),
        spelt(draw, draw(st.sampled_from(["ground truth", "masks", "GT"]))),
    )
    as_mvtec = draw(st.booleans())
    kinds = draw(
        st.lists(st.sampled_from(["crack", "Hole", "deep cut", *TABLE["bad"]]), min_size=1, max_size=3, unique=True)
    )
    split = {"train": spelt(draw, "train"), "test": spelt(draw, "test"), "validation": spelt(draw, "val")}
    expected, files = [], []
    places = [("train", good, False), *(("test", kind, True) for kind in kinds)]
    if as_mvtec:
        places += [("test", good, False), *([("validation", good, False)] if draw(st.booleans()) else [])]
    pattern, nested = draw(MASK), draw(st.booleans())
    for which, name, bad in places:
        for stem in draw(st.lists(STEM, min_size=1, max_size=3, unique=True)):
            photo = Path(split[which], name, stem) if as_mvtec else Path(name, stem)
            photo = photo.with_name(stem + draw(SUFFIX))
            marks = []
            if bad and draw(st.booleans()):
                inside = Path(masks, spelt(draw, name))
                marks = (
                    [inside / stem / "0.png", inside / stem / "1.png"]
                    if nested
                    else [inside / f"{pattern.format(stem)}.png"]
                )
            files += [photo, *marks]
            expected.append((which, bad, photo, tuple(marks)))
    return files, expected


@many
@given(trees(), st.booleans())
def test_trees_of_any_naming_are_read_as_they_are_meant(folder, tree, alone):
    files, expected = tree
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name).resolve() / "disc"
        for path in files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        found = twice(lambda: index_tree(root if alone else root.parent))
        assert {record.class_name for record in found} == {"disc"}
        relative = [
            (r.split, r.is_anomalous, r.image.relative_to(root), tuple(m.relative_to(root) for m in r.masks))
            for r in found
        ]
        assert sorted(relative, key=str) == sorted(expected, key=str)


WORDS = st.sampled_from(
    [
        *sorted(w for key in ("good", "train", "test", "masks", "results") for w in names()[key])[:40],
        "a",
        "0",
        "é",
        "x.y",
        ".",
    ]
)


@many
@given(st.lists(st.tuples(st.lists(WORDS, max_size=4), MASK, WORDS, SUFFIX), min_size=1, max_size=8))
def test_any_folders_are_read_the_same_twice_or_refused(folder, paths):
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for parts, pattern, stem, suffix in paths:
            path = Path(name, *parts, pattern.format(stem) + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = twice(lambda: index_tree(Path(name))) or []
        assert len({record.image for record in found}) == len(found)
        for record in found:
            assert record.image.is_file() and all(mask.is_file() for mask in record.masks)
            assert record.is_anomalous or not record.masks


# -- tables


COLUMN = {
    "path": ["path", "image", "File_Name", "Image Path", "图片"],
    "split": ["split", "Set", "PHASE"],
    "label": ["label", "is_anomaly", "Target", "标签"],
    "mask": ["mask", "Mask Path", "GT"],
    "class": ["class", "object", "Category", "类别"],
    "defect": ["defect", "defect_type"],
    "extra": ["id", "operator", "note"],
}
LABELS = [
    ("good", "bad"),
    ("OK", "NG"),
    ("0", "1"),
    ("Normal", "Anomaly"),
    ("pass", "fail"),
    ("FALSE", "TRUE"),
    ("合格", "不合格"),
]
SPLIT = {"train": ["train", "Training"], "validation": ["val", "validation", "VALID"], "test": ["test", "Test"]}
CELL = st.text(st.characters(codec="gb2312", exclude_categories=["C", "Z"], exclude_characters=',;|"'), max_size=6)


@st.composite
def tables(draw):
    """The bytes of a table of four photos, and what a reader should find."""
    columns = [
        "path",
        "label",
        *draw(st.lists(st.sampled_from(["split", "mask", "class", "defect", "extra"]), unique=True)),
    ]
    columns = draw(st.permutations(columns))
    labels, rows, expected = draw(st.sampled_from(LABELS)), [], []
    for number in range(draw(st.integers(1, 4))):
        bad, split = draw(st.booleans()), draw(st.sampled_from(list(SPLIT)))
        mask = bad and draw(st.booleans())
        cells = {
            "path": f"sub/{number}.png",
            "split": draw(st.sampled_from(SPLIT[split])),
            "label": labels[bad],
            "mask": f"sub/m{number}.png" if mask else "",
            "class": "k" + draw(CELL),
            "defect": draw(CELL) if bad else "",
            "extra": draw(CELL),
        }
        rows.append([cells[column] for column in columns])
        name = cells["class"] if "class" in columns else "table"
        defect = (cells["defect"] if "defect" in columns and cells["defect"] else "defect") if bad else "good"
        split, mask = (split if "split" in columns else "test"), mask and "mask" in columns
        expected.append((name, split, bad, defect, f"{number}.png", [f"m{number}.png"] if mask else []))
    header = [draw(st.sampled_from(COLUMN[column])) for column in columns]
    mark, end = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quote = draw(st.sampled_from(["{}", '"{}"', " {} "]))
    text = end.join(mark.join(map(quote.format, row)) for row in [header, *rows]) + draw(
        st.sampled_from(["", end, end * 2])
    )
    if draw(st.booleans()):
        text = text.replace("sub/", "sub\\")
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030", "gb2312"]))
    data = text.encode(encoding)
    if encoding.startswith(
        "gb"
    ):  # Chinese text that is valid UTF-8, too, is taken for it where the columns are English
        assume(text.isascii() or not is_utf8(data))
    return data, expected


def is_utf8(data):
    with contextlib.suppress(UnicodeDecodeError):
        return bool(data.decode())
    return False


@pytest.fixture(scope="module")
def photos(folder) -> Path:
    (folder / "sub").mkdir()
    for number in range(4):
        for name in (f"{number}.png", f"m{number}.png"):
            Image.new("L", (4, 4), 255).save(folder / "sub" / name)
    return folder


@many
@given(tables())
def test_tables_of_any_dialect_are_read_as_they_are_meant(photos, table):
    data, expected = table
    (photos / "table.csv").write_bytes(data)
    found = twice(lambda: index_csv(photos / "table.csv"))
    assert found is not None
    rows = [(r.class_name, r.split, r.is_anomalous, r.defect, r.image.name, [m.name for m in r.masks]) for r in found]
    assert sorted(rows) == sorted(expected)


@many
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=100).map(lambda text: f"path,label\n{text}".encode(errors="ignore"))
    )
)
def test_any_bytes_as_a_table_are_read_the_same_twice_or_refused(photos, data):
    (photos / "table.csv").write_bytes(data)
    twice(lambda: index_csv(photos / "table.csv"))
