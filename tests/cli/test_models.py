from pathlib import Path

from typer.testing import CliRunner

from openrl.cli.models import models_app


def test_the_list_names_the_models_and_says_which_are_there(tmp_path: Path):
    (tmp_path / "gemma-3-270m").mkdir()
    (tmp_path / "gemma-3-270m" / "config.json").write_text("{}")
    result = CliRunner().invoke(models_app, ["list", "--dir", str(tmp_path)], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.output.splitlines()}
    assert "yes" in rows["gemma-3-270m"]
    assert "no" in rows["smollm2-135m-instruct"]


def test_fetching_an_unknown_model_ends_with_an_error_that_names_the_known_ones(tmp_path: Path):
    result = CliRunner().invoke(models_app, ["fetch", "gpt-2", "--dir", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "smollm2-135m-instruct" in result.output


def test_fetching_a_model_that_is_there_says_where(tmp_path: Path):
    (tmp_path / "gemma-3-270m").mkdir()
    (tmp_path / "gemma-3-270m" / "config.json").write_text("{}")
    result = CliRunner().invoke(models_app, ["fetch", "gemma-3-270m", "--dir", str(tmp_path)])
    assert result.exit_code == 0
    assert str(tmp_path / "gemma-3-270m") in result.output
    assert "Gemma Terms of Use" in result.output
