"""Which samples two data sets do not share: a second reading of both, where their sums differ.

Every sample is noted as 64 bits of its digest and 64 of its key's hash, equal ones are paired off, and what is left
over on either side is the difference. Memory is bounded by taking one part of the keys after the other. A third
reading, of few shards, gives the keys of the samples to be named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tarmill.engine.base import Engine
from tarmill.jobs.drive import results
from tarmill.jobs.listener import Listener
from tarmill.jobs.verify_shard import ROW_BYTES, VerifyTask, collect_digests, name_samples
from tarmill.values import replace, valueclass

SAMPLES_PER_PASS = 4_000_000
"""How many samples, of both sides together, are compared at a time: about 300 MB."""
MAX_NAMED = 10
"""How many samples are named where two data sets differ."""

_Pair = tuple["tuple[int, int] | None", ...]
"""Where a sample that differs is in IN and in OUT: number of the shard, low half of the digest."""

KINDS = {
    "lost": "only in IN",
    "added": "only in OUT",
    "changed": "changed, same key on both sides and other contents",
    "doubled": "doubled, more often in OUT than in IN",
    "fewer": "fewer, not as often in OUT as in IN",
}


@valueclass
class Difference:
    """One sample in which two data sets differ."""

    kind: str
    """One of `KINDS`."""
    key: str
    source_shard: str
    """Where it is in IN; "" where it is not."""
    output_shard: str
    """Where it is in OUT; "" where it is not."""

    def __str__(self) -> str:
        text = f"{KINDS[self.kind]}: key {self.key!r}"
        if self.kind == "changed":
            return f"{text} of shard {self.source_shard} and of {self.output_shard}"
        return f"{text} of shard {self.source_shard or self.output_shard}"


def find_differences(
    engine: Engine, listener: Listener, tasks: Sequence[VerifyTask], middle: int, samples: int, counts: Counter[str]
) -> list[Difference]:
    """Read both data sets again, and name some of the samples in which they differ.

    Args:
        engine, listener: run the tasks, are told.
        tasks: the shards of IN, then those of OUT; their index is their place here.
        middle: how many are of IN.
        samples: how many both sides hold.
        counts: how many samples differ is added to it, by kind of `KINDS`, also where an error comes later.

    Raises:
        TarmillError: a shard cannot be read again.
    """
    import numpy

    passes = max(1, -(-samples // SAMPLES_PER_PASS))
    examples = dict[str, list[_Pair]]()
    for part in range(passes):
        asked = [replace(task, part=(part, passes)) for task in tasks]
        blocks = list(results(engine, collect_digests, asked, listener))
        rows = [numpy.frombuffer(b"".join(half), "<u8").reshape(-1, 2) for half in (blocks[:middle], blocks[middle:])]
        owners = numpy.repeat(numpy.arange(len(blocks)), [len(block) // ROW_BYTES for block in blocks])
        owner = [owners[: len(rows[0])], owners[len(rows[0]) :]]
        del blocks
        for kind, (count, pairs) in differences(rows[0], rows[1]).items():
            counts[kind] += count
            known = examples.setdefault(kind, [])
            for pair in pairs[: MAX_NAMED - len(known)]:
                known.append(
                    tuple(
                        None if row is None else (int(owner[side][row]), int(rows[side][row, 0]))
                        for side, row in enumerate(pair)
                    )
                )
    return _named(engine, listener, tasks, _mixed(examples))


def differences(ours: Any, theirs: Any) -> dict[str, tuple[int, list[tuple[int | None, int | None]]]]:
    """Compare two multisets of samples; each is an array of rows (digest, key hash) (pure).

    Returns:
        For each kind of `KINDS` that there is: how many, and up to `MAX_NAMED` of them as row numbers on both sides.
    """
    import numpy

    left = numpy.flatnonzero(~_paired(ours[:, 0], theirs[:, 0]))
    right = numpy.flatnonzero(~_paired(theirs[:, 0], ours[:, 0]))
    # a copy more of a sample that the other side has too
    left_again, right_again = numpy.isin(ours[left, 0], theirs[:, 0]), numpy.isin(theirs[right, 0], ours[:, 0])
    fewer, doubled = left[left_again], right[right_again]
    left, right = left[~left_again], right[~right_again]
    left_changed = _paired(ours[left, 1], theirs[right, 1])
    right_changed = _paired(theirs[right, 1], ours[left, 1])
    changed = left[left_changed], right[right_changed]
    # both have the same keys equally often, so that in the order of keys they stand side by side
    changed = tuple(
        rows[numpy.argsort(side[rows, 1], kind="stable")] for side, rows in zip((ours, theirs), changed, strict=True)
    )
    order = numpy.argsort(changed[0], kind="stable")
    found = {
        "lost": (left[~left_changed], None),
        "added": (None, right[~right_changed]),
        "changed": (changed[0][order], changed[1][order]),
        "doubled": (None, doubled),
        "fewer": (fewer, None),
    }
    result: dict[str, tuple[int, list[tuple[int | None, int | None]]]] = {}
    for kind, (mine, other) in found.items():
        count = len(mine if mine is not None else other)
        if count:
            first = [[None] * MAX_NAMED if rows is None else rows[:MAX_NAMED].tolist() for rows in (mine, other)]
            result[kind] = count, list(zip(*first, strict=False))[: min(count, MAX_NAMED)]
    return result


def _paired(values: Any, others: Any) -> Any:
    """Tell for each value whether it has a partner among the others: equal ones pair off, one to one, first come."""
    import numpy

    order = numpy.argsort(values, kind="stable")
    ranked, others = values[order], numpy.sort(others)
    rank = numpy.arange(len(ranked)) - numpy.searchsorted(ranked, ranked, "left")
    partners = numpy.searchsorted(others, ranked, "right") - numpy.searchsorted(others, ranked, "left")
    result = numpy.empty(len(values), bool)
    result[order] = rank < partners
    return result


def _mixed(examples: dict[str, list[_Pair]]) -> list[tuple[str, _Pair]]:
    """Take up to `MAX_NAMED` examples, of every kind some."""
    found: list[tuple[str, _Pair]] = []
    for rank in range(MAX_NAMED):
        found += [(kind, examples[kind][rank]) for kind in KINDS if rank < len(examples.get(kind, []))]
    kinds = list(KINDS)
    return sorted(found[:MAX_NAMED], key=lambda item: kinds.index(item[0]))


def _named(
    engine: Engine, listener: Listener, tasks: Sequence[VerifyTask], examples: Sequence[tuple[str, _Pair]]
) -> list[Difference]:
    """Read the shards of the examples once more, for their keys."""
    wanted: dict[int, set[int]] = {}
    for _, pair in examples:
        for place in pair:
            if place is not None:
                wanted.setdefault(place[0], set()).add(place[1])
    asked = [replace(tasks[number], wanted=frozenset(digests)) for number, digests in sorted(wanted.items())]
    keys = dict(zip(sorted(wanted), results(engine, name_samples, asked, listener), strict=True))
    found: list[Difference] = []
    for kind, pair in examples:
        key = next(keys[place[0]][place[1]] for place in pair if place is not None)
        shard, other = ("" if place is None else tasks[place[0]].label for place in pair)
        found.append(Difference(kind, key, shard, other))
    return found
