"""`python -m openrl.worker`: one worker process; its settings come as JSON on standard input."""

from openrl.worker.factory import create_engines
from openrl.worker.process import main

if __name__ == "__main__":
    main(create_engines)
