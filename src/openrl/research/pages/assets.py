"""The files of the page, one by one as they are served, or joined for a document that stands alone."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "static"
MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z_]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?function|const|class)", re.MULTILINE)


@cache
def asset_names() -> frozenset[str]:
    """What may be asked for."""
    return frozenset(each.name for each in _DIRECTORY.iterdir() if each.suffix in MEDIA_TYPES)


def read_asset(name: str) -> str:
    """The text of a file; `name` is one of `asset_names`."""
    assert name in asset_names()
    return (_DIRECTORY / name).read_text()


def joined_script(entry: str = "main.js") -> str:
    """The modules that `entry` needs, as one: no top-level name is in two of them."""
    done: list[str] = []
    texts: list[str] = []

    def add(name: str) -> None:
        if name in done:
            return
        done.append(name)
        source = read_asset(name)
        for needed in _IMPORT.findall(source):
            add(needed)
        texts.append(_EXPORT.sub("", _IMPORT.sub("", source)))

    add(entry)
    return "\n".join(texts)


def content_hash(text: str) -> str:
    """As a Content-Security-Policy names inline content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
