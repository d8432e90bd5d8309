"""Settles Python's own machinery for a server: collections that stop the world, and turns between threads."""

import gc
import sys

_COLLECT_AFTER = 50_000
"""New containers before the youngest are searched for cycles; requests leave few of them."""
_SWITCH_S = 0.0005
"""A thread back from the disk waits this long for a busy event loop to let it go on."""


def settle_interpreter() -> None:
    """Call once when everything that stays has been built: it is never searched for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 10, 10)
    sys.setswitchinterval(_SWITCH_S)
