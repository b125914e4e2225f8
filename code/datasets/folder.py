"""The ``dataset.yaml`` beside a user's own folders of photos, which describes their classes."""

from pathlib import Path

from anomalygpt.datasets.class_info import ClassInfo, read_class_infos
from anomalygpt.datasets.records import choose_classes
from anomalygpt.datasets.tree import class_folders

CLASS_FILE = "dataset.yaml"


def folder_infos(root: Path) -> dict[str, ClassInfo]:
    """The entries of ``dataset.yaml`` in ``root``, by class name; empty where there is no such file.

    Raises:
        DatasetError: the file is wrong, or names a class that does not exist.
    """
    path = Path(root) / CLASS_FILE
    if not path.is_file():
        return {}
    infos = read_class_infos(path)
    choose_classes(path, list(class_folders(root)), list(infos))
    return infos
