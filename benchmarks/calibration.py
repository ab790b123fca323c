"""How fast the machine is at this moment: a fixed piece of work for one thread, before and after each turn.

What it takes is a matter of the machine and of who else uses it, since nothing of ours runs meanwhile. A turn between
two that differ was not measured on one machine.
"""

import gc
import statistics
import time

# Of 17 ms each on the machine of README.md: a hiccup of a millisecond in one of them is not the machine's speed.
_PIECES = 3
_STEPS = 90_000
# More than a second-level cache has, so that it goes through memory.
_BYTES = 8 * 1024 * 1024
_COPIES = 4


def seconds() -> float:
    """The median of three pieces, some 50 ms in all."""
    memory = bytearray(_BYTES)
    collects = gc.isenabled()
    gc.disable()
    try:
        return statistics.median(_piece(memory) for _ in range(_PIECES))
    finally:
        if collects:
            gc.enable()


def _piece(memory: bytearray) -> float:
    began = time.perf_counter()
    counts: dict[int, int] = {}
    number = 1
    for _ in range(_STEPS):
        number = number * 1_103_515_245 + 12_345 & 0x7FFFFFFF
        counts[number & 0x3FF] = counts.get(number & 0x3FF, 0) + 1
    for _ in range(_COPIES):
        bytes(memory)
    return time.perf_counter() - began
