"""What a process remembers of rows that never change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Values by key, for all threads: the `most` that were used last. Only for what no statement can change."""

    def __init__(self, most: int):
        self.most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[str, V] = OrderedDict()

    def get(self, keys: Collection[str], read: Callable[[list[str]], Mapping[str, V]]) -> dict[str, V]:
        """The values of these keys; `read` is asked for those that are not remembered."""
        with self._lock:
            found = {key: self._values[key] for key in keys if key in self._values}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            found |= read(missing)
        with self._lock:
            for key, value in found.items():
                self._values[key] = value
                self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)
        return found
