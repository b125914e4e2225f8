"""What pyproject.toml can't say: the wheel's ``__init__.py``, and the compact model's trained parts in the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

COMPACT = Path("pretrained_ckpt/anomalygpt_compact")


class Build(build_py):
    """Copies ``code/anomalygpt.py``, and the weights that are in git, into the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib) / "anomalygpt"
            (package / "anomalygpt.py").replace(package / "__init__.py")
            shutil.copytree(COMPACT, package / COMPACT, dirs_exist_ok=True)


class Editable(editable_wheel):
    """Puts ``code/`` on the path, where ``anomalygpt.py`` finds the rest."""

    def run(self) -> None:
        self.distribution.packages = None
        self.distribution.py_modules = ["anomalygpt"]
        self.distribution.package_dir = {"": "code"}
        super().run()


setup(cmdclass={"build_py": Build, "editable_wheel": Editable})
