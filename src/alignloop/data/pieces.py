"""Text to ids in pieces, so that a boundary between two pieces is a boundary between two tokens, exactly.

Encoding "prompt + answer" as one text may merge characters across the boundary; encoding the answer alone may put a
space in front of it (SentencePiece models do, and byte-level ones with `add_prefix_space`). `Pieces` encodes a piece as
the continuation of what stands before it: no merge, no invented space, and `decode(follow(text)) == text` for
tokenizers that lose nothing. Works on a private copy of the tokenizer, free of its truncation and padding state.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from alignloop.core.errors import ModelError


class Pieces:
    """Encodes and decodes pieces of a text for one tokenizer.

    prefix   ids that the tokenizer itself puts before a text (usually its BOS, or none)
    added    id -> text of the tokens that are never split or merged (special ones and others)
    """

    def __init__(self, tokenizer: Any):
        self.added: dict[int, str] = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        self.prefix = _prefix(tokenizer)
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._start = self._next = None
        self._each = False
        if backend is not None:
            from tokenizers import Tokenizer

            layout = json.loads(backend.to_str())
            layout["truncation"] = layout["padding"] = None
            self._start = self._next = Tokenizer.from_str(json.dumps(layout))
            changed, self._each = without_prefix_space(layout)
            if changed:
                self._next = Tokenizer.from_str(json.dumps(layout))
        names = sorted(self.added.values(), key=len, reverse=True)
        self._added_text = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")

    def begin(self, text: str) -> list[int]:
        """Ids of a text that nothing precedes, without the tokenizer's own BOS or EOS."""
        if self._start is None:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        return list(self._start.encode(text, add_special_tokens=False).ids)

    def follow(self, text: str, after: int | None) -> list[int]:
        """Ids of a text that continues a text whose last token is `after` (None: nothing precedes it)."""
        if self._next is self._start or after is None or (self._each and after in self.added):
            return self.begin(text)
        # Past an added token the tokenizer begins afresh; only what precedes the first one continues the text before.
        found = self._added_text.search(text)
        cut = found.start() if found else len(text)
        head = self._next.encode(text[:cut], add_special_tokens=False).ids if cut else []  # type: ignore[union-attr]
        return list(head) + (self.begin(text[cut:]) if cut < len(text) else [])

    def decode(self, ids: list[int]) -> str:
        """The text of ids that continue a text: a leading space stays. Special tokens are left out."""
        if self._next is None:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return self._next.decode(ids, skip_special_tokens=True)

    def first_added(self, text: str) -> re.Match[str] | None:
        """Where the first added token stands in a text."""
        return self._added_text.search(text)

    def id_of(self, token: str) -> int | None:
        """The id of an added token's text."""
        return next((i for i, text in self.added.items() if text == token), None)

    def description(self) -> str:
        """All that decides which ids a text gets. A padding token of its own does not: it is left out."""
        t = self._tokenizer
        if self._start is None:
            return json.dumps(sorted(t.get_vocab().items()))
        layout = json.loads(self._start.to_str())
        used = {t.bos_token, t.eos_token, t.unk_token}
        layout["added_tokens"] = [
            a for a in layout["added_tokens"] if a["content"] != t.pad_token or a["content"] in used
        ]
        return json.dumps(layout, sort_keys=True)


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text, found by encoding one with and without special tokens."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    raise ModelError("the tokenizer gives other ids with special tokens than without; it cannot be used piece by piece")


def without_prefix_space(layout: dict[str, Any]) -> tuple[bool, bool]:
    """Take from a tokenizer.json layout, in place, what puts a space before a text or takes one away.

    Returns (whether anything was changed, whether the space also comes after every added token).
    """
    changed = each = False
    for part in _parts(layout.get("normalizer"), "normalizers"):
        if part["type"] == "Prepend":
            part.clear()
            part.update({"type": "Replace", "pattern": {"String": "\x00"}, "content": "\x00"})  # changes nothing
            changed = each = True
    for part in _parts(layout.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            each |= part.get("prepend_scheme", "always") == "always"
            part["prepend_scheme"], changed = "never", True
        if part["type"] == "ByteLevel" and part.get("add_prefix_space"):
            part["add_prefix_space"] = False
            changed = each = True
    for part in _parts(layout.get("decoder"), "decoders"):
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            part["prepend_scheme"], changed = "never", True
        if part["type"] == "Strip" and part.get("start"):
            part["start"], changed = 0, True
    return changed, each


def _parts(component: Any, inner: str) -> list[dict[str, Any]]:
    """A component of a tokenizer and, where it is a sequence, its parts."""
    if not component:
        return []
    found = [cast(dict[str, Any], component)]
    for part in component.get(inner, []):
        found += _parts(part, inner)
    return found
