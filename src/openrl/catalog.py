"""The base models a server offers, and the bounds that admission checks against; no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from openrl.config import ModelConfig
from openrl.errors import MAX_SHOWN_CHARACTERS, InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class BaseModelInfo:
    """What is known of a base model without loading its weights."""

    name: str
    path: Path
    architecture: str
    vocab_size: int
    context_length: int


class Catalog:
    """The served base models by name; the first is the default."""

    def __init__(self, models: tuple[BaseModelInfo, ...]) -> None:
        self._by_name = {model.name: model for model in models}

    @classmethod
    def load(cls, models: tuple[ModelConfig, ...]) -> "Catalog":
        """Read each model's config.json; raises InvalidRequest naming what is missing."""
        return cls(tuple(_read(model) for model in models))

    def get(self, name: str) -> BaseModelInfo:
        """Raises NotFound with the names that are served."""
        if name not in self._by_name:
            served = ", ".join(self._by_name) or "none"
            message = f"base model {name[:MAX_SHOWN_CHARACTERS]!r} is not served here; served: {served}"
            raise NotFound(message, value=name, bound=f"one of {served}")
        return self._by_name[name]

    def all(self) -> tuple[BaseModelInfo, ...]:
        """All served models, in the order given."""
        return tuple(self._by_name.values())


def _read(model: ModelConfig) -> BaseModelInfo:
    file = model.path / "config.json"
    if not file.is_file():
        raise InvalidRequest(f"model {model.name!r}: {file} does not exist; it must be a Hugging Face directory")
    config = json.loads(file.read_text())
    text = config.get("text_config", config)
    missing = [key for key in ("vocab_size", "max_position_embeddings") if key not in text]
    if missing:
        raise InvalidRequest(f"model {model.name!r}: {file} lacks {', '.join(missing)}")
    return BaseModelInfo(
        name=model.name,
        path=model.path,
        architecture=(config.get("architectures") or ["unknown"])[0],
        vocab_size=int(text["vocab_size"]),
        context_length=int(text["max_position_embeddings"]),
    )


def read_eos_token_ids(path: Path) -> frozenset[int]:
    """Tokens that end a generation by default: the generation config's, else the model config's."""
    for name in ("generation_config.json", "config.json"):
        file = path / name
        config = json.loads(file.read_text()) if file.is_file() else {}
        ids = config.get("text_config", config).get("eos_token_id")
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()
