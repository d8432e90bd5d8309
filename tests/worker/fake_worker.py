"""A real worker process with fake engines: `python fake_worker.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from openrl.worker.process import main
from tests.worker.fake_engines import fake_engines

if __name__ == "__main__":
    main(fake_engines)
