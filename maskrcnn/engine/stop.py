"""Stopping a run by Ctrl-C, or by the signals with which schedulers and terminals end a process."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from maskrcnn import distributed

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; a scheduler, ``kill`` or torchrun; a terminal that is closed."""


class Stop:
    """Flag that is set when the run should stop."""

    requested = False


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Inside the block, the first of :data:`SIGNALS` only sets ``requested`` and prints a message; a second Ctrl-C
    interrupts immediately.

    With several processes, later signals only set it too: the terminal and torchrun may both send one, and a process
    that stops immediately would leave the others waiting. torchrun kills processes that take more than 30 seconds.
    Signals that were ignored when the process was started (nohup) stay ignored; outside of the main thread, no handlers
    are installed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(signum: int, frame: object) -> None:
        if not stop.requested and distributed.is_main():
            again = "" if distributed.world_size() > 1 else "; Ctrl-C again stops at once"
            print(f"\n{signal.Signals(signum).name}: stopping after this step or validation{again}", file=sys.stderr)
        stop.requested = True
        if signum == signal.SIGINT and distributed.world_size() == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield stop
    finally:
        for number in handled:
            signal.signal(number, before[number])


GRACE_SECONDS = 30
"""How long a loader worker lives on after SIGTERM: torchrun and SLURM kill their processes after as long."""


def leave_signals_to_parent(worker: int) -> None:
    """Let loader workers outlive :data:`SIGNALS` that reach all processes of a run, for batches are needed until the
    step is done. Workers end with their parent, and ``GRACE_SECONDS`` after SIGTERM, with which a parent that exits
    ends those that it still has."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(GRACE_SECONDS))
