"""The wheel: one package, sd4match, with the checkout's other packages inside it. pyproject.toml has the rest.

A checkout keeps its packages at the top (`from utils.image import ...`), where an installed `utils` would collide with
anybody's. So the wheel holds them below sd4match/, and their imports of each other name sd4match. `pip install -e .`
uses the checkout as it is.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MOVED = ("app", "config", "dataset", "engine", "loss", "model", "utils")
PACKAGES = find_packages(include=[pattern for name in MOVED for pattern in (name, f"{name}.*")])
NAMES = "|".join(MOVED)
FROM = re.compile(rf"^([ \t]*from )(?=(?:{NAMES})\b)", re.MULTILINE)
IMPORT = re.compile(rf"^([ \t]*)(?=import (?:{NAMES})$)", re.MULTILINE)
PLACE = re.compile(rf'(?<=")(?=(?:{NAMES})[\w.]*:\w+")')  # "module:name", for importlib


def move_imports(text: str) -> str:
    """A module's text with its imports of the checkout's packages as they are in the wheel."""
    text = FROM.sub(r"\1sd4match.", text)
    return PLACE.sub("sd4match.", IMPORT.sub(r"\1from sd4match ", text))


class BuildPackage(build_py):
    def build_module(self, module, module_file, package):
        built, copied = super().build_module(module, module_file, package)
        if copied and not self.editable_mode:
            path = Path(built)
            path.write_text(move_imports(path.read_text(encoding="utf-8")), encoding="utf-8")
        return built, copied


setup(
    cmdclass={"build_py": BuildPackage},
    packages=["sd4match", *(f"sd4match.{name}" for name in PACKAGES), "sd4match.asset.mini"],
    package_dir={**{f"sd4match.{name}": name for name in MOVED}, "sd4match.asset.mini": "asset/mini"},
    package_data={
        "sd4match.app": ["static/**"],
        "sd4match.config": ["**/*.yaml"],
        "sd4match.asset.mini": ["dinov2/**", "stable-diffusion/**", "stable-diffusion-words/**"],
    },
)
