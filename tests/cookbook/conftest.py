"""One server and one workspace for all recipes, and the table of what they showed."""

import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cookbook.chat_model import FIXED_NAMES, SERVED_NAME, save_chat_model, save_tokenizers
from tests.cookbook.offline_data import write_offline_data
from tests.cookbook.player_model import PLAYER_NAME, save_player_model
from tests.cookbook.recipes import PYTHON, ROOT, Recipes
from tests.cookbook.table import write_table
from tests.live_server import start_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="document whose table of recipes is written anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cookbook/" in item.nodeid:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(900))
            # The SDK leaves its sockets to the garbage collector, which complains of each.
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Recipes]:
    subprocess.run([ROOT / "scripts" / "setup_cookbook.sh"], check=True)
    workspace = tmp_path_factory.mktemp("workspace")
    save_tokenizers(workspace)
    write_offline_data(workspace, PYTHON)
    root = tmp_path_factory.mktemp("cookbook")
    model = save_chat_model(root / "model")
    served = dict.fromkeys(FIXED_NAMES, model) | {PLAYER_NAME: save_player_model(root / "player")}
    others = [argument for name, folder in served.items() for argument in ("--model", f"{name}={folder}")]
    live = start_server(model, root / "data", *others, name=SERVED_NAME)
    shown = Recipes(live, workspace, model)
    yield shown
    gc.collect()
    live.stop()
    if document := request.config.getoption("--table", default=None):
        write_table(document, shown.rows)
