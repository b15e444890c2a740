"""The reduce step of a sort: samples of equal group key in, those that are left out, with books that balance.

A group may be larger than memory: samples come one by one and none is held for longer than the reduce needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any

from tarmill.errors import FormatError, ScriptError
from tarmill.formats.samples import OnError, Record
from tarmill.formats.sort_keys import parse_sort_keys
from tarmill.formats.tar_write import check_key
from tarmill.jobs.reduce_builtin import Step, builtin_step, storable_key
from tarmill.jobs.script import Wanted, failure, is_several, load_function, prepared_function, short
from tarmill.spec import SortSpec

REASONS = {
    "first": "not-first",
    "last": "not-last",
    "dedup": "duplicate",
    "count": "counted",
    "merge": "merged",
    "concat": "merged",
}
"""Why samples of a group are left out, by reduce; of a group that `--join` leaves out all are "not-joined"."""

_BY_SCRIPT = "by-reduce"
_REDUCE = Wanted("reduce_samples", "def reduce_samples(key, samples): ... return record   # or None, or yield several")
_SORT_KEY = Wanted("sort_key", "def sort_key(record): ... return key   # a str, bytes, int or float")


class Reducer:
    """Reduces group by group and keeps totals: fed + added = written + dropped, after each group.

    Of a group of n samples with m results, n - m are dropped, all for one reason, or m - n are added. Samples that the
    step does not take are read too, so that they are counted and the next group can begin.
    """

    def __init__(self, step: Step, reason: str, *, empty_reason: str = "", drain_failed: bool = False) -> None:
        self.fed = 0
        """Samples that came."""
        self.written = 0
        """Samples that were yielded."""
        self.added = 0
        """Samples beyond one for one, as a script may give."""
        self.dropped: Counter[str] = Counter()
        """Samples left out, by reason."""
        self._step = step
        self._reason = reason
        self._empty_reason = empty_reason or reason
        self._drain_failed = drain_failed
        self._fault: Exception | None = None

    def reduce(self, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
        """Reduce one group; the books hold when the iterator has ended.

        Args:
            key: the group's key, as it was sorted by.
            samples: records with `__part__`, in order; consumed.

        Yields:
            (record, key under which it can be stored), each to be written before the next is asked for.

        Raises:
            ScriptError: the script failed or gave no sample; with a policy other than `fail` the group has been read to
                its end and the books hold, so that the next one can follow. What came before stays written, the
                others are dropped for the error's reason.
            FormatError: likewise for a merge or concat that is impossible; or reading a sample failed.
        """
        fed_before, written, self._fault = self.fed, 0, None
        feed = self._feed(samples)
        try:
            for result in self._step(key, feed):
                written += 1
                yield result
        except (ScriptError, FormatError) as error:
            self._check_fault()
            if self._drain_failed:
                self._drain(samples)
                self._enter(self.fed - fed_before, written, error.reason)
            raise
        self._check_fault()
        feed.close()
        self._drain(samples)
        self._enter(self.fed - fed_before, written, self._reason if written else self._empty_reason)

    def _feed(self, samples: Iterator[Record]) -> Generator[Record, None, None]:
        try:
            for record in samples:
                self.fed += 1
                yield record
        except Exception as error:
            self._fault = error  # a script that catches everything must not hide it
            raise

    def _check_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _drain(self, samples: Iterator[Record]) -> None:
        for _ in samples:
            self.fed += 1

    def _enter(self, fed: int, written: int, reason: str) -> None:
        """Enter a group into the books."""
        self.written += written
        self.added += max(0, written - fed)
        if written < fed:
            self.dropped[reason] += fed - written


def make_reducer(spec: SortSpec, parts: int) -> Reducer:
    """Make what reduces the groups of a sort, in a process that runs tasks: a script's `setup(params)` is run.

    Args:
        spec: reduces.
        parts: how many `::` parts the inputs have.

    Raises:
        SpecError: options that cannot work together.
        ScriptError: the script cannot be used.
    """
    check_spec(spec)
    return _reducer(spec, parts, partial=False)


def make_combiner(spec: SortSpec, parts: int) -> Reducer:
    """Make what reduces groups of one batch of inputs, for the reducer of the same spec to complete (`--combine`).

    First, last and dedup yield some of the records that they got, the very same objects. The others make new ones,
    which belong to the group whatever fields they have: its key must be kept beside them.

    Raises:
        SpecError: the reduce cannot be done in two steps.
        ScriptError: the script cannot be used.
    """
    check_spec(spec)
    if not combinable(spec):
        _refuse_combine(spec)
    return _reducer(spec, parts, partial=True)


def combinable(spec: SortSpec) -> bool:
    """Tell whether a reduce gives the same samples when batches of a group are reduced first.

    All do, where a group's samples stand in the order of the inputs. Where `-k` gives them another order within the
    group, those of several batches mingle, so that merge and concat must see all at once. Of a script the user says so
    by asking for it.
    """
    ordered = parse_sort_keys(spec.keys or ("__key__",))
    mingled = bool(spec.group_by) and parse_sort_keys(spec.group_by) != ordered
    return spec.reduces and not (mingled and spec.reduce in ("merge", "concat"))


def check_spec(spec: SortSpec) -> None:
    """Refuse options of a reduce that cannot work together, without running the user's code.

    Raises:
        SpecError: as said.
    """
    if not spec.reduces:
        spec.refuse("reduce", "expected the name of a reduce, or -r with a script")
    options = ("join", "outer", "merge"), ("same_field", "error", "merge"), ("dedup_by", "key", "dedup")
    for name, usual, owner in options:
        if getattr(spec, name) != usual and spec.reduce != owner:
            spec.refuse(name, f"it needs --reduce {owner}")
    if spec.combine and not combinable(spec):
        _refuse_combine(spec)


def check_scripts(spec: SortSpec) -> None:
    """Check before any worker starts that the scripts load and define what is needed; no `setup` is run.

    Raises:
        SpecError: `-k script` without a script.
        ScriptError: one cannot be used.
    """
    if spec.reduce_script:
        load_function(spec.reduce_script, spec.reduce_script_name, _REDUCE)
    if (source := _sort_key_source(spec)) is not None:
        load_function(*source, _SORT_KEY)


def load_sort_key(spec: SortSpec) -> Callable[[Record], Any] | None:
    """Load the user's `sort_key(record)`, from `-p` or else from `-r`, or give None where nothing is sorted by script.

    The function raises ScriptError, with line and sample, whatever the user's raises.

    Raises:
        SpecError: `-k script` without a script.
        ScriptError: the script cannot be used.
    """
    source = _sort_key_source(spec)
    if source is None:
        return None
    text, name = source
    function = prepared_function(text, name, spec.params, _SORT_KEY)

    def sort_key(record: Record) -> Any:
        key, shard = record["__key__"], record["__url__"]
        try:
            return function(record)
        except (Exception, SystemExit) as error:
            raise failure(name, "sort_key failed", error, key, shard) from None

    return sort_key


def _sort_key_source(spec: SortSpec) -> tuple[str, str] | None:
    """Find text and name of the script that has `sort_key`."""
    if spec.script:
        return spec.script, spec.script_name
    options = ("keys", "group_by")
    used = [name for name in options if any(key.column is None for key in parse_sort_keys(getattr(spec, name)))]
    if used and not spec.reduce_script:
        spec.refuse(used[0], "`script` needs -p with a file that defines sort_key(record)")
    return (spec.reduce_script, spec.reduce_script_name) if used else None


def _refuse_combine(spec: SortSpec) -> None:
    spec.refuse(
        "combine", f"--reduce {spec.reduce} needs all samples of a group in the order of -k at once; leave it out"
    )


def _reducer(spec: SortSpec, parts: int, *, partial: bool) -> Reducer:
    drain_failed = spec.on_error != OnError.FAIL
    if spec.reduce_script:
        name = spec.reduce_script_name
        step = _ScriptStep(prepared_function(spec.reduce_script, name, spec.params, _REDUCE), name)
        return Reducer(step, _BY_SCRIPT, drain_failed=drain_failed)
    return Reducer(
        builtin_step(spec, parts, partial=partial),
        REASONS[spec.reduce],
        empty_reason="not-joined" if spec.reduce == "merge" else "",
        drain_failed=drain_failed,
    )


class _Handed(str):
    """A key as the script gets it: tells which of a record's two names for it was changed, with no list of keys."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class _ScriptStep:
    """The user's `reduce_samples`; what it yields is taken one by one."""

    def __init__(self, function: Callable[[Any, Iterator[Record]], Any], name: str) -> None:
        self._function, self._name = function, name
        self._at = "", ""

    def __call__(self, key: Any, samples: Iterator[Record]) -> Iterator[tuple[Record, str]]:
        self._at = "", ""
        handed = self._hand_out(samples)
        try:
            results = self._function(key, handed)
            if results is None or isinstance(results, dict):
                results = [] if results is None else [results]
            elif not is_several(results):
                raise self._nonsense(results, key, "returned")
            for record in results:
                if not isinstance(record, dict):
                    raise self._nonsense(record, key, "gave an iterable with")
                yield record, self._key_of(record, key)
        except ScriptError:
            raise
        except (Exception, SystemExit) as error:
            sample, shard = self._at
            place = f"on group {short(key)}" + (f", at sample {sample!r} of {shard}" if shard else "")
            raise failure(self._name, "reduce_samples failed", error, storable_key(key), shard, place) from None
        finally:
            handed.close()  # it ends with the call, also for a script that keeps it

    def _hand_out(self, samples: Iterator[Record]) -> Generator[Record, None, None]:
        for record in samples:
            key = record["__key__"]
            self._at = key, record["__url__"]
            handed = _Handed(key)
            if isinstance(record.get("key"), str):  # no field of that name
                record["key"] = handed
            record["__key__"] = handed
            yield record

    def _key_of(self, record: Record, key: Any) -> str:
        """Find the key of a result: `__key__`, or a str `key` that was changed instead, or else the group's."""
        main, alias = record.get("__key__"), record.get("key")
        if not isinstance(alias, str):
            alias = main  # a field of that name
        if main is None:
            main = alias
            if main is None:
                return storable_key(key)
        if not isinstance(main, str):
            raise self._bad_key(f"__key__ is {type(main).__name__} {short(main)}; expected a str", key)
        if main != alias:
            changed = [name for name in (main, alias) if name.__class__ is not _Handed]
            if len(changed) != 1:
                raise self._bad_key(f"__key__ is {main!r} and key {alias!r}; change one of them", key)
            main = changed[0]
        result = str(main)
        try:
            check_key(result)
        except ScriptError as error:
            raise self._bad_key(error.message, key) from None
        return result

    def _bad_key(self, fact: str, key: Any) -> ScriptError:
        return self._error(f"a record for group {short(key)}: {fact}", key, "bad-key")

    def _nonsense(self, value: Any, key: Any, what: str) -> ScriptError:
        return self._error(
            f"reduce_samples {what} {type(value).__name__} {short(value)} for group {short(key)}; expected a dict, "
            "None to drop the group, or an iterable of dicts",
            key,
            "bad-result",
        )

    def _error(self, message: str, key: Any, reason: str) -> ScriptError:
        return ScriptError(f"{self._name}: {message}", script=self._name, key=storable_key(key), reason=reason)
