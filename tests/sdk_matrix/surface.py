"""What an SDK asks of a server, read from its source: it need not be importable."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")


def surface(package: Path) -> set[str]:
    """A line for each endpoint, public method of a client, and field of a type or message, with its default."""
    lines: set[str] = set()
    for file in package.rglob("*.py*"):
        if file.suffix not in (".py", ".pyi"):
            continue
        text = file.read_text()
        lines.update(f"endpoint {re.sub('{[^}]*}', '{}', path)}" for path in re.findall(r'"/api/v1/([^"?]*)"', text))
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                is_type = file.parent.name == "types" or file.suffix == ".pyi"
                lines.update(_methods(node) if node.name in CLIENTS else _fields(node) if is_type else ())
    return lines


def changes(old: Path, new: Path) -> list[str]:
    """What `new` asks of a server and `old` does not, with "+", and the other way round, with "-"."""
    before, after = surface(old), surface(new)
    return [f"- {line}" for line in sorted(before - after)] + [f"+ {line}" for line in sorted(after - before)]


def _methods(client: ast.ClassDef) -> Iterator[str]:
    for node in client.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
            yield f"method {client.name}.{node.name}({', '.join(names)})"


def _fields(kind: ast.ClassDef) -> Iterator[str]:
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = "" if node.value is None else f" = {ast.unparse(node.value)}"
            yield f"field {kind.name}.{node.target.id}: {ast.unparse(node.annotation)}{default}"
