from pathlib import Path

import pytest

from openrl.cli.data_dir import DataDir, open_store
from openrl.config import Config
from openrl.errors import Unavailable


def test_a_second_server_is_refused_while_the_first_one_runs(tmp_path: Path):
    data_dir = DataDir(tmp_path / "data")
    with data_dir.lock(), pytest.raises(Unavailable, match=r"another server \(process \d+\) uses"), data_dir.lock():
        pass
    with data_dir.lock():
        pass


def test_a_lock_file_that_a_dead_server_left_is_no_obstacle(tmp_path: Path):
    (tmp_path / "lock").write_text("1")
    with DataDir(tmp_path).lock():
        pass


async def test_a_data_directory_that_is_a_file_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "data").write_text("")
    with pytest.raises(Unavailable, match="cannot be used"):
        async with open_store(Config(data_dir=tmp_path / "data")):
            pass
