"""Calls a function of tinker_cookbook with options of the form name=value; runs in the cookbook's own environment."""

import importlib
import sys


def main() -> None:
    name, *options = sys.argv[1:]
    module, _, function = name.rpartition(".")
    given = dict(option.split("=", 1) for option in options)
    print(getattr(importlib.import_module(f"tinker_cookbook.{module}"), function)(**given))


if __name__ == "__main__":
    main()
