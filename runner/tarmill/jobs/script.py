"""The user's script: loaded from its text, checked before any worker starts, called sample by sample.

The text travels inside the task, so that every worker runs the same script whatever lies on its disk.
"""

from __future__ import annotations

import linecache
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from tarmill.errors import ScriptError
from tarmill.formats.samples import Record
from tarmill.formats.tar_write import check_key
from tarmill.values import valueclass

_MODULE = "tarmill_user_script"

_Found = TypeVar("_Found")


@valueclass(frozen=False)
class Script:
    """A loaded script; exactly one of the two functions is set."""

    name: str
    process_sample: Callable[[Record], Any] | None
    process_samples: Callable[[Iterator[Record]], Iterable[Any]] | None
    setup: Callable[[dict[str, str]], Any] | None


@valueclass
class Wanted:
    """A function that a script must define, for others than htmapper."""

    function: str
    example: str
    """How it may look, for the message that it is not there."""


_prepared: dict[tuple[str, str, tuple[tuple[str, str], ...]], types.ModuleType] = {}
_preparing = threading.Lock()  # a Dask worker may run several tasks in threads of one process


def prepared(text: str, name: str, params: dict[str, str]) -> Script:
    """Load a script once per process and run its `setup(params)`; later calls give the functions of the same module."""
    return _prepared_by(_script_of, text, name, params)


def prepared_function(text: str, name: str, params: dict[str, str], wanted: Wanted) -> Callable[..., Any]:
    """Load a script as `prepared` does and find another function in it; a file may hold several, set up once."""
    return _prepared_by(lambda module: _function_of(module, wanted), text, name, params)


def _prepared_by(find: Callable[[types.ModuleType], _Found], text: str, name: str, params: dict[str, str]) -> _Found:
    identity = (text, name, tuple(sorted(params.items())))
    with _preparing:
        if identity not in _prepared:
            module = _run(text, name)
            find(module)  # what is not there is told before a setup takes its time
            if (setup := _callable(module, "setup")) is not None:
                try:
                    setup(dict(params))
                except (Exception, SystemExit) as error:
                    raise failure(name, "setup(params) failed", error) from None
            _prepared[identity] = module
        return find(_prepared[identity])


def load(text: str, name: str) -> Script:
    """Compile and run a script's text and find its functions.

    Raises:
        ScriptError: it does not compile, fails when it is run, or defines neither function, or both.
    """
    return _script_of(_run(text, name))


def load_function(text: str, name: str, wanted: Wanted) -> Callable[..., Any]:
    """Compile and run a script's text and find one function, without its `setup`.

    Raises:
        ScriptError: it does not compile, fails when it is run, or does not define the function.
    """
    return _function_of(_run(text, name), wanted)


def _run(text: str, name: str) -> types.ModuleType:
    """Make a module of a script's text."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        code = compile(text, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{name}, line {line}" if line else name
        shown = (getattr(error, "text", None) or "").strip()
        fault = f"{getattr(error, 'msg', error)}{': ' if shown else ''}{shown}"
        raise ScriptError(f"{where}: {fault}; mend the script", script=name, line=line) from None
    stem = "".join(letter if letter.isalnum() else "_" for letter in name.removesuffix(".py"))
    module = types.ModuleType(f"{_MODULE}_{stem}")  # htsort may load two
    module.__file__ = name
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class's module up there
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:  # an exit would end the whole job in silence
        raise failure(name, "the script failed while it was loaded", error) from None
    return module


def _callable(module: types.ModuleType, function: str) -> Callable[..., Any] | None:
    found = getattr(module, function, None)
    if found is not None and not callable(found):
        name = module.__file__
        raise ScriptError(f"{name}: {function} is {type(found).__name__}; expected a function", script=name)
    return found


def _function_of(module: types.ModuleType, wanted: Wanted) -> Callable[..., Any]:
    found, name = _callable(module, wanted.function), module.__file__
    _callable(module, "setup")
    if found is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        fact = f" (it defines {', '.join(own)})" if own else ""
        raise ScriptError(
            f"{name} does not define {wanted.function}{fact}; expected\n    {wanted.example}", script=name
        )
    return found


def _script_of(module: types.ModuleType) -> Script:
    one, many, setup = (_callable(module, wanted) for wanted in ("process_sample", "process_samples", "setup"))
    name = str(module.__file__)
    if (one is None) == (many is None):
        fact = "defines neither process_sample nor process_samples" if one is None else "defines both functions"
        raise ScriptError(
            f"{name} {fact}; expected exactly one of\n"
            "    def process_sample(record): ... return record   # or None to drop it, or several records\n"
            "    def process_samples(records): ...               # a generator over a whole shard",
            script=name,
        )
    return Script(name, one, many, setup)


def failure(name: str, fact: str, error: BaseException, key: str = "", shard: str = "", place: str = "") -> ScriptError:
    """Tell an exception of the user's code as a ScriptError: what, with file and line, and the trimmed traceback.

    Args:
        name: of the script.
        fact: what failed.
        error: the exception.
        key, shard: the sample that it failed on, or "".
        place: where it failed in words, when that is no single sample.
    """
    import traceback  # dear, and mostly nothing fails

    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == name]
    where = f"{name}, line {own[-1].lineno}" if own else name
    text = "".join(traceback.format_list(frames[frames.index(own[0]) :] if own else frames))
    text += "".join(traceback.format_exception_only(error))
    place = place or (f"on sample {key!r} of {shard}" if key else "")
    return ScriptError(
        f"{where}: {type(error).__name__}: {error} ({fact}{' ' if place else ''}{place})",
        script=name,
        line=own[-1].lineno if own else None,
        key=key,
        shard=shard,
        reason="script-error",
        script_traceback=text,
    )


def results_of(result: Any, name: str, key: str, function: str = "process_sample") -> list[Record]:
    """Turn what the script's function gave for a sample into a list of records: none, one or several.

    Raises:
        ScriptError: it is nothing of the kind.
    """
    if result is None:
        return []
    if isinstance(result, dict):
        return [result]
    if not is_several(result):
        raise _nonsense(result, name, key, f"{function} returned")
    found = list(result)
    for item in found:
        if not isinstance(item, dict):
            raise _nonsense(item, name, key, f"{function} gave an iterable with")
    return found


def batch_results(results: Any, name: str) -> Iterable[Any]:
    """Check that what `process_samples` returned can be gone through.

    Raises:
        ScriptError: it cannot, mostly since the function does not yield.
    """
    if not is_several(results):
        raise ScriptError(
            f"{name}: process_samples returned {type(results).__name__} {short(results)}; expected a generator or an "
            "iterable of dicts: yield each record",
            script=name,
            reason="bad-result",
        )
    found: Iterable[Any] = results
    return found


def is_several(result: Any) -> bool:
    """Tell whether something is an iterable of records by its kind: no dict, text or bytes."""
    return isinstance(result, Iterable) and not isinstance(result, dict | str | bytes | bytearray | memoryview)


def _nonsense(value: Any, name: str, key: str, what: str) -> ScriptError:
    return ScriptError(
        f"{name}: {what} {type(value).__name__} {short(value)} for sample {key!r}; expected a dict, None to drop the "
        "sample, or an iterable of dicts",
        script=name,
        key=key,
        reason="bad-result",
    )


def short(value: Any) -> str:
    """Show a value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def key_of(record: Record, source_key: str, name: str) -> str:
    """Find the key that a returned record means: `__key__` or a str `key`, whichever differs from the input's.

    Raises:
        ScriptError: both differ and not in the same way, or the key is no str or cannot be stored.
    """
    main, alias = _both_keys(record, source_key, name)
    if main not in (source_key, alias) and alias != source_key:
        raise _two_keys(record, source_key, name)
    key = main if main != source_key else alias
    check_key(key)
    return key


def batch_key_of(record: Record, handed_out: Mapping[int, str], name: str, last_key: str) -> str:
    """Find the key of a record that `process_samples` gave: `__key__`, or a str `key` that was changed instead.

    Args:
        record: any that the script made, or one that it got, in any order.
        handed_out: the keys of the records that it got, by `id`, so that a name that still holds one is not changed.
        name: of the script.
        last_key: of the last record that it got, for messages.

    Raises:
        ScriptError: no `__key__`, or as `key_of`.
    """
    if "__key__" not in record:
        raise ScriptError(
            f"{name}: process_samples gave a record without __key__ after sample {last_key!r}; expected the str under "
            "which it is stored",
            script=name,
            key=last_key,
            reason="bad-key",
        )
    main, alias = _both_keys(record, record["__key__"], name)
    changed = [key for key in (main, alias) if id(key) not in handed_out]
    if main != alias and len(changed) != 1:
        raise _two_keys(record, last_key, name)
    key = changed[0] if main != alias else main
    check_key(key)
    return key


def _both_keys(record: Record, source_key: str, name: str) -> tuple[str, str]:
    main, alias = record.get("__key__", source_key), record.get("key", source_key)
    if not isinstance(main, str):
        raise ScriptError(
            f"{name}: __key__ is {type(main).__name__} {short(main)} for sample {source_key!r}; expected a str",
            script=name,
            key=str(source_key),
            reason="bad-key",
        )
    return main, alias if isinstance(alias, str) else source_key  # else it is a field named "key"


def _two_keys(record: Record, source_key: str, name: str) -> ScriptError:
    return ScriptError(
        f"{name}: sample {source_key!r} came back with __key__ {record['__key__']!r} and key {record['key']!r}; change "
        "one of them",
        script=name,
        key=source_key,
        reason="bad-key",
    )
