import pytest

from openrl.errors import InvalidRequest
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_name, parse_checkpoint_path


def test_a_path_reads_back_as_it_was_written():
    path = CheckpointPath("5f:train:0", "sampler_weights", "step_10.a")
    assert parse_checkpoint_path(str(path)) == path
    assert path.checkpoint_id == "sampler_weights/step_10.a"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tinker://",
        "tinker://run/weights",
        "tinker://run/weights/a/b",
        "tinker://run/other/a",
        "http://run/weights/a",
        "tinker:///weights/a",
        "tinker://run/weights/..",
        "tinker://run/weights/",
        "tinker://run/weights/a\x00",
        "tinker://ru n/weights/a",
        "tinker://run/weights/a%2f..",
        "tinker://run/weights/" + "a" * 201,
    ],
)
def test_other_forms_are_refused(path: str):
    with pytest.raises(InvalidRequest):
        parse_checkpoint_path(path)


def test_names_that_clients_use_are_valid():
    for name in ("final", "000010", "step=10", "lr1e-4_seed.0", "a" * 200):
        assert parse_checkpoint_name(name) == name
