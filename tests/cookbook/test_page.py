"""docs/cookbook.md names every program of the library: in its table, or with the reason why it was not run."""

import re
from fnmatch import fnmatch
from pathlib import Path

from tests.cookbook.recipes import PYTHON, ROOT, Recipes

PAGE = ROOT / "docs" / "cookbook.md"


def programs() -> list[str]:
    """Modules that can be started, named from the library on, recipes from `recipes` on."""
    [library] = PYTHON.parents[1].glob("lib/python*/site-packages/tinker_cookbook")
    return sorted(module_name(file, library) for file in library.rglob("*.py") if is_program(file))


def is_program(file: Path) -> bool:
    return any(line.startswith("if __name__ ==") for line in file.read_text().splitlines())


def module_name(file: Path, library: Path) -> str:
    return file.relative_to(library).with_suffix("").as_posix().replace("/", ".").removeprefix("recipes.")


def test_the_page_names_every_program(recipes: Recipes):
    names = set(re.findall(r"`([\w.*]+)`", PAGE.read_text()))
    found = programs()
    assert len(found) > 60
    assert [each for each in found if not any(fnmatch(each, name) for name in names)] == []
