"""What training shares with evaluation: thirteen words in a row (Brown et al. 2020, arXiv:2005.14165, appendix C).

Words are what is left without case and punctuation; in scripts without spaces every character is one. A prompt that is
a held-out text as a whole is found whatever its length. Thirteen words that more than ten texts share, held out or
trained on, are boilerplate (an instruction before every question) and tell nothing of one of them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from itertools import chain

from alignloop.core.types import normalised

WORDS = 13
COMMON = 10
_ANCHOR = 5
_STEP = WORDS - _ANCHOR + 1  # every 13 words hold a run of 5 that begins at a multiple of 9: these are looked up first
_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u3040-\u9fff\uac00-\ud7af\uf900-\ufaff]+")
_ASCII = re.compile(r"\w+")  # the same where there are no other signs, in half the time

Words = tuple[str, ...]


def words_of(text: str) -> Words:
    """The words by which texts are compared.

    >>> words_of("Don't  panic: it's 2+2!")
    ('don', 't', 'panic', 'it', 's', '2', '2')
    """
    return tuple(_ASCII.findall(text.lower()) if text.isascii() else _WORD.findall(normalised(text)))


class HeldOut:
    """Texts that evaluation asks and training must not hold, given as (name, text); equal texts count once."""

    def __init__(self, texts: Iterable[tuple[str, str]] = ()) -> None:
        self._whole: dict[Words, str] = {}
        for name, text in texts:
            if words := words_of(text):
                self._whole.setdefault(words, name)
        grams = {gram: name for words, name in reversed(self._whole.items()) for gram in _runs(words, WORDS)}
        self._grams = _uncommon(grams, Counter(gram for words in self._whole for gram in set(_runs(words, WORDS))))
        self._anchors = {run for words in self._whole for run in _runs(words, _ANCHOR)} if self._grams else set()

    def __len__(self) -> int:
        return len(self._whole)

    @property
    def sha256(self) -> str:
        """The hash of the texts, whatever their order and names."""
        return hashlib.sha256("\n".join(sorted(map(" ".join, self._whole))).encode("utf-8", "replace")).hexdigest()

    def among(self, prompts: Iterable[str]) -> HeldOut:
        """The same, but what more than ten of these training prompts share is boilerplate; equal prompts count once."""
        counts, seen = Counter[Words](), set[int]()
        for prompt in prompts if self._grams else ():
            if (key := hash(words := words_of(prompt))) not in seen:
                seen.add(key)
                counts.update(set(self._shared(words)))
        made = copy(self)
        made._grams = _uncommon(self._grams, counts)
        return made

    def match(self, prompt: str, answers: Iterable[str] = ()) -> str | None:
        """The name of a held-out text that a training prompt is, or that it or an answer shares words with, or None."""
        words = words_of(prompt)
        if words in self._whole:
            return self._whole[words]
        if not self._grams:
            return None
        found = chain(self._shared(words), *(self._shared(words_of(answer)) for answer in answers))
        return next((self._grams[gram] for gram in found), None)

    def _shared(self, words: Words) -> Iterator[Words]:
        for at in range(0, len(words) - _ANCHOR + 1, _STEP):
            if words[at : at + _ANCHOR] in self._anchors:
                for start in range(max(0, at - _STEP + 1), min(at, len(words) - WORDS) + 1):
                    if (gram := words[start : start + WORDS]) in self._grams:
                        yield gram


def _uncommon(grams: dict[Words, str], counts: Counter[Words]) -> dict[Words, str]:
    return {gram: name for gram, name in grams.items() if counts[gram] <= COMMON}


def _runs(words: Words, n: int) -> Iterator[Words]:
    return (words[i : i + n] for i in range(len(words) - n + 1))
