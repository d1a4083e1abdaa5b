"""KeyboardInterrupt in the middle of something, as Ctrl-C gives it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable


def interrupted(work: Callable[[], object], delay: float) -> bool:
    """Run ``work`` in this, the main, thread and send it SIGINT after ``delay`` seconds.

    Returns whether ``work`` ended before it; whatever else than KeyboardInterrupt it raises comes out.
    """
    main = threading.main_thread().ident
    # A process that a shell started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main == threading.get_ident()

    def send() -> None:
        time.sleep(delay)
        signal.pthread_kill(main, signal.SIGINT)

    sender = threading.Thread(target=send, name="interrupting")
    finished = False
    try:
        sender.start()
        work()
        finished = True
        sender.join()
        time.sleep(0.01)  # a late one arrives here
    except KeyboardInterrupt:
        pass
    sender.join()
    signal.signal(signal.SIGINT, before)
    return finished


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """What ``work`` takes, to choose moments within it; nothing is judged by it."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
