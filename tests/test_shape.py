"""Files and functions stay small enough to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

EXEMPT_FILES: dict[str, str] = {
    "src/openrl/protocol/perfetto_pb2.py": "generated",
    "src/openrl/protocol/tinker_pb2.py": "generated",
    "src/openrl/protocol/tinker_pb2.pyi": "generated",
}
EXEMPT_FUNCTIONS: dict[str, str] = {}


def python_files() -> Iterator[Path]:
    for folder in ("src", "tests", "bench", "examples", "recipes", "scripts"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_no_file_is_longer_than_400_lines():
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in python_files()
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES
        and str(path.relative_to(ROOT)) not in EXEMPT_FILES
    }
    assert not too_long


def test_no_function_is_longer_than_80_lines():
    too_long: dict[str, int] = {}
    for path in python_files():
        name = str(path.relative_to(ROOT))
        if name in EXEMPT_FILES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES and f"{name}:{node.name}" not in EXEMPT_FUNCTIONS:
                    too_long[f"{name}:{node.name}"] = lines
    assert not too_long


def test_every_exemption_is_still_needed():
    missing = [name for name in EXEMPT_FILES if not (ROOT / name).exists()]
    assert not missing
