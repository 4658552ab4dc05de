"""Defer Ctrl-C and SIGTERM to safe points."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block ends, then handle the first that came.

    A KeyboardInterrupt inside a library that hands data to another thread (TensorBoard's queue of
    events) can leave its locks taken, and then closing it waits forever. Signals reach the main
    thread alone; elsewhere this does nothing.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None: installed by other means than Python's, so it could not be restored.
    if threading.current_thread() is not threading.main_thread() or None in handlers.values():
        yield
        return
    pending: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
