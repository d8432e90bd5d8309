"""A short run of bench.crash: contracts 34 and 38 with clients of two tenants at work."""

from pathlib import Path

import pytest
from bench.crash import FORMS, run


# 34, 38
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", FORMS)
def test_kills_at_random_moments_lose_double_and_change_nothing(tmp_path: Path, form: str):
    result = run(form, num_kills=10, seed=7, root=tmp_path)
    assert result["is_right"], result
    assert sum(result["kills"].values()) == 10
