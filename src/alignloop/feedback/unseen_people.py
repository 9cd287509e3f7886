"""Does what was learnt from some people's votes hold for people it never saw?

People are dealt into groups, and what the votes of all other groups teach is tried on the votes of each. InstructGPT
did so with its labellers (Ouyang et al. 2022, arXiv:2203.02155, §4.1): its reward models predicted 72.4 % of the votes
of people they had learnt from and 69.6 % of other people's. A wide gap says that people were learnt rather than
quality. What generalises is a person, so intervals are over people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from alignloop.core.errors import DataError
from alignloop.feedback.intervals import Figure, Floats, bootstrap_sums, percentiles, undefined
from alignloop.feedback.ordinal import OrdinalFit, fit_ordinal
from alignloop.feedback.vote_arrays import VoteArrays
from alignloop.store.votes import Vote

GROUPS = 5
LEAST_PEOPLE = 5  # for an interval: fewer draw the same few people again and again


class Prediction(NamedTuple):
    """A vote that names a side and was not learnt from. seen: others of this person's were. hit: 1, 0; .5 for a tie."""

    annotator: str
    seen: bool
    hit: float


@dataclass(frozen=True)
class UnseenPeople:
    """Shares of votes predicted: of people whose other votes were learnt from (seen), of people who were left out.

    gap: seen − unseen, over the people who have votes of both sorts. n counts votes; intervals are over people.
    """

    groups: int
    people: int
    unseen: Figure
    seen: Figure
    gap: Figure


def people_in_groups(names: Iterable[str], groups: int = GROUPS, seed: int = 0) -> dict[str, int]:
    """Everybody's group, 0 .. groups − 1; groups differ by one person at most, and there are no more than people.

    Errors: DataError for fewer than two people or groups.
    """
    people = sorted(set(names), key=lambda name: (hashlib.sha256(f"{seed}|{name}".encode()).digest(), name))
    if len(people) < 2:
        raise DataError("holds votes of one person at most; nobody is left who was not learnt from")
    if groups < 2:
        raise DataError(f"{groups} groups of people; give 2 or more", field="groups")
    return {name: k % min(groups, len(people)) for k, name in enumerate(people)}


def unseen_people(predictions: Iterable[Prediction], groups: int, seed: int = 0) -> UnseenPeople:
    """How well votes were predicted, of people seen and unseen."""
    sums: dict[str, Floats] = {}
    for one in predictions:
        row = sums.setdefault(one.annotator, np.zeros(4))
        row[2 * one.seen : 2 * one.seen + 2] += one.hit, 1
    rows = np.array([sums[name] for name in sorted(sums)]).reshape(-1, 4)
    both = rows[(rows[:, 1] > 0) & (rows[:, 3] > 0)]
    return UnseenPeople(
        groups=groups,
        people=len(rows),
        unseen=_share(rows[:, :2], seed),
        seen=_share(rows[:, 2:], seed),
        gap=_figure(both, lambda s: s[:, 2] / s[:, 3] - s[:, 0] / s[:, 1], int(both[:, 1].sum()), seed),
    )


def consensus_on_unseen(
    arrays: VoteArrays, names: Sequence[str], fit: OrdinalFit, groups: int = GROUPS, seed: int = 0
) -> Figure:
    """Share of a person's votes whose side the votes of others on the same item name, the person's group left out.

    What agreement among people leaves to any model of quality. fit: of all votes, where the search starts.
    """
    if len(names) < 2:
        return undefined("one person has voted")
    group_of = people_in_groups(names, groups, seed)
    group = np.array([group_of[name] for name in names])[arrays.annotator]
    found: list[Prediction] = []
    for k in range(max(group_of.values()) + 1):
        rest = arrays.without(group == k)
        judged = np.bincount(rest.item, minlength=arrays.n_items) > 0
        side = np.sign(fit_ordinal(rest, fit).d) * judged
        tried = np.flatnonzero((group == k) & (arrays.strength != 0) & judged[arrays.item])
        hits = (1 + side[arrays.item[tried]] * np.sign(arrays.strength[tried])) / 2
        found += [Prediction(names[j], False, float(hit)) for j, hit in zip(arrays.annotator[tried], hits)]
    return unseen_people(found, groups, seed).unseen


def votes_of_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[Vote]:
    """The votes of a snapshot's comparisons that come from votes; slot 0 is the row's chosen answer."""
    for row in rows:
        if row["origin"] == "votes":
            for v in row["votes"]:
                yield Vote(
                    "", row["id"], row["id"], v["a"], row["kind"], v["s"], v["side"] == "L", False, False, v["ms"]
                )


def _share(rows: Floats, seed: int) -> Figure:
    rows = rows[rows[:, 1] > 0]
    return _figure(rows, lambda s: s[:, 0] / s[:, 1], int(rows[:, 1].sum()), seed)


def _figure(rows: Floats, value: Callable[[Floats], Floats], n: int, seed: int) -> Figure:
    """A function of sums over people, with its bootstrap over them."""
    if not len(rows):
        return undefined("no such votes")
    found = float(value(rows.sum(axis=0)[None])[0])
    if len(rows) < LEAST_PEOPLE:
        return Figure(found, None, None, n, f"{len(rows)} people are too few for an interval")
    return Figure(found, *percentiles(value(bootstrap_sums(rows, seed=seed))), n)
