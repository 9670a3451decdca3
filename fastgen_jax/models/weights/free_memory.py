"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_INTERVAL = 0.01  # seconds


@contextmanager
def freed_memory_released() -> Iterator[None]:
    """Makes the C library return what is freed meanwhile; nothing happens where it isn't glibc.

    Threads of a library that free many buffers of a few MiB leave them with the allocator's arenas,
    one for each few threads, where they count as this process's memory until something in the same
    arena asks for that size again.
    """
    done = threading.Event()
    thread = threading.Thread(target=_release, args=(done,), name="fastgen-trim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _release(done: threading.Event) -> None:
    # OSError: no such library here; AttributeError: it lacks the function.
    with suppress(OSError, AttributeError):
        trim = ctypes.CDLL(None).malloc_trim
        while not done.wait(_INTERVAL):
            trim(0)
        trim(0)
