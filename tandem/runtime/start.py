"""The start of a service's process, nine tenths of which are imports."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn


def start(program: str) -> NoReturn:
    """Runs `run()` of the module `program`, with whatever that imports, and ends with the exit code that it returns.

    What is imported stays. The garbage collector would look through it again and again while it grows, for a tenth of
    a start, and once more when the server begins to answer.
    """
    gc.disable()
    run = import_module(program).run
    gc.freeze()
    gc.enable()
    sys.exit(run())


@contextmanager
def import_without(*names: str) -> Iterator[None]:
    """In the block, these packages are as if not installed, unless they are imported already.

    For a library that takes them where they are there, and does without them otherwise.
    """
    hidden = [it for it in names if it not in sys.modules]
    # The import system's own way to say so.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
