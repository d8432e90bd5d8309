import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openrl.cli.checks import (
    check_data_dir,
    check_database,
    check_key_file,
    check_models,
    check_port,
    check_python,
    check_torch,
    measure_fsync,
)
from openrl.cli.http_server import bind
from openrl.cli.main import app
from openrl.config import ModelConfig
from tests.postgres import PostgresServer


def test_old_pythons_are_a_problem():
    assert check_python((3, 10, 1)).is_problem
    assert not check_python((3, 12, 0)).is_problem


def test_a_torch_that_cannot_be_imported_is_a_problem_with_its_reason(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: libcudart is missing' >&2; exit 1\n")
    python.chmod(0o755)
    finding = check_torch("auto", str(python))
    assert finding.is_problem
    assert "libcudart" in finding.found


def test_cuda_that_was_asked_for_and_is_not_there_is_a_problem(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 2.13.0\n")
    python.chmod(0o755)
    assert check_torch("cuda:0", str(python)).is_problem
    assert not check_torch("auto", str(python)).is_problem


def test_a_data_directory_that_is_not_made_yet_is_judged_by_its_parent(tmp_path: Path):
    subjects = [finding.subject for finding in check_data_dir(tmp_path / "a" / "b")]
    assert subjects == ["disk space", "fsync"]
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_a_file_is_a_problem(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert [finding.is_problem for finding in check_data_dir(tmp_path / "file")] == [True]


def test_fsync_is_timed_and_leaves_nothing_behind(tmp_path: Path):
    assert 0 < measure_fsync(tmp_path) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_a_problem():
    with bind("127.0.0.1", 0) as listener:
        finding = check_port("127.0.0.1", listener.getsockname()[1])
    assert finding.is_problem
    assert "--port 0" in finding.remedy


def test_models_are_read_and_their_gaps_named(tmp_path: Path, tiny_model_dir: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text('{"vocab_size": 8, "max_position_embeddings": 16}')
    models = [("good", tiny_model_dir), ("empty", empty), ("half", half)]
    good, bad, partial = check_models(tuple(ModelConfig(name=name, path=path) for name, path in models))
    assert not good.is_problem
    assert "context 256" in good.found
    assert "config.json does not exist" in bad.found
    assert "lacks weights (*.safetensors) and a tokenizer" in partial.found


def test_no_model_at_all_is_a_problem():
    assert [finding.is_problem for finding in check_models(())] == [True]


def test_a_key_file_that_others_can_read_is_a_problem(tmp_path: Path):
    key_file = tmp_path / "key"
    assert not check_key_file(key_file).is_problem
    key_file.write_text("tml-x")
    key_file.chmod(0o644)
    assert check_key_file(key_file).remedy == f"chmod 600 {key_file}"
    key_file.chmod(0o600)
    assert not check_key_file(key_file).is_problem


def test_doctor_exits_with_1_when_something_needs_mending(tmp_path: Path, tiny_model_dir: Path):
    arguments = ["doctor", "--json", "--port", "0", "--data-dir", str(tmp_path)]
    healthy = CliRunner().invoke(app, [*arguments, "--model", f"tiny={tiny_model_dir}"])
    findings = json.loads(healthy.stdout)
    assert healthy.exit_code == int(any(finding["remedy"] for finding in findings))
    assert {"Python", "PyTorch", "memory", "disk space", "fsync", "port", "model tiny", "key file", "tinker SDK"} == {
        finding["subject"] for finding in findings
    }
    assert CliRunner().invoke(app, [*arguments]).exit_code == 1
    assert sys.version.split()[0] in healthy.stdout


def test_a_database_that_answers_is_named(postgres: PostgresServer, tmp_path: Path):
    assert check_database(postgres.url).found.startswith("PostgreSQL 1")
    assert check_database(f"sqlite:///{tmp_path}/store.db").found.startswith("SQLite 3")


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@127.0.0.1:1/db", "nonsense"])
def test_a_database_that_does_not_answer_is_a_problem(url: str):
    finding = check_database(url)
    assert finding.is_problem
    assert "hunter2" not in finding.found
