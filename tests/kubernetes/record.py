"""`python -m tests.kubernetes.record` records the renderings of all examples anew: `make golden`."""

from tests.kubernetes.chart import GOLDEN, example_names
from tests.kubernetes.test_chart import golden_text


def main() -> None:
    """Writes one file for each example, and removes those of examples that are gone."""
    names = example_names()
    for name in names:
        (GOLDEN / f"{name}.yaml").write_text(golden_text(name))
    for path in GOLDEN.glob("*.yaml"):
        if path.stem not in names:
            path.unlink()


if __name__ == "__main__":
    main()
