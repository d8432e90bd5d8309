"""Finds the directories that `--model NAME[=DIR]` means."""

from pathlib import Path

from openrl.cli.data_dir import DataDir
from openrl.config import Config, ModelConfig
from openrl.errors import InvalidRequest
from openrl.model.downloads import DEFAULT_MODELS_DIR


def find_model(text: str, model_dirs: tuple[Path, ...] = (DEFAULT_MODELS_DIR,)) -> ModelConfig:
    """The model's name and directory; raises InvalidRequest saying where it was looked for.

    NAME=DIR is cut at the last "=" that has an existing directory to its right. NAME alone is a
    directory itself, or one below a directory of `model_dirs`.
    """
    places = _cuts(text) or _named(text, model_dirs)
    for name, path in places:
        if path.is_dir():
            return ModelConfig(name=name, path=path.resolve())
    looked = ", ".join(str(path) for _, path in places)
    raise InvalidRequest(
        f"model {text!r} was not found (looked for: {looked}); "
        "give --model NAME=DIRECTORY, or fetch one: openrl models fetch NAME"
    )


def _cuts(text: str) -> list[tuple[str, Path]]:
    cuts = [(text[:i], Path(text[i + 1 :]).expanduser()) for i, letter in enumerate(text) if letter == "="]
    return [(name, path) for name, path in reversed(cuts) if name and text[len(name) + 1 :] and path.is_dir()]


def _named(text: str, model_dirs: tuple[Path, ...]) -> list[tuple[str, Path]]:
    itself = Path(text).expanduser()
    below = [(text, directory.expanduser() / text) for directory in model_dirs]
    return [(itself.resolve().name, itself), *below]


def with_models(config: Config, models: list[str]) -> Config:
    """The configuration with these models, or its own where none are given; raises InvalidRequest without any."""
    dirs = (DataDir(config.data_dir).models, DEFAULT_MODELS_DIR)
    found = tuple(find_model(each, dirs) for each in models) or config.models
    if not found:
        raise InvalidRequest("no model to serve: give --model NAME=DIRECTORY (see also: openrl models list)")
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"model {name!r} is given {names.count(name)} times; names must differ")
    return config.model_copy(update={"models": found, "data_dir": config.data_dir.absolute()})
