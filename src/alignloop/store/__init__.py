"""Store: tables, sessions, lineage and snapshots. Free of torch.

``Store(url)`` opens the database; `snapshots` freezes its votes into files; `lineage` walks from a model to the
judgements behind it and back.
"""

from alignloop.store.store import Store

__all__ = ["Store"]
