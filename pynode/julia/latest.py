"""What was used last, in bounded room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Latest(Generic[K, V]):
    """Values by key, those that were used last.

    Parameters
    ----------
    most : int
        How many are kept.
    forget : callable, optional
        Called with each value that is let go.
    """

    def __init__(self, most: int, forget: Callable[[V], object] = lambda value: None) -> None:
        self._most, self._forget = most, forget
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of ``key``, made if need be."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Without the lock: making one may wait for Julia, and who is in Julia may wait for us.
        made = make()
        with self._lock:
            found = self._kept.setdefault(key, made)
            self._kept.move_to_end(key)
            gone = [] if found is made else [made]
            while len(self._kept) > self._most:
                gone.append(self._kept.popitem(last=False)[1])
        for value in gone:
            self._forget(value)
        return found
