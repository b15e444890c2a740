"""What the sources of an upload hold: folders, files, globs, prefixes of stores; where each field is."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from tarmill import storage
from tarmill.errors import NotFoundError, UsageError
from tarmill.formats.keys import key_function
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.cut_outputs import numbered
from tarmill.jobs.inputs import MANIFEST_SUFFIX
from tarmill.jobs.upload_collect import Collector
from tarmill.jobs.upload_look import Looked, Run, label_part, look, problem_of
from tarmill.jobs.upload_tree import MARK, Tree
from tarmill.planning.upload_listing import Entry, Part
from tarmill.planning.upload_names import (
    NameTest,
    fault_of_field,
    fault_of_key,
    folder_test,
    glob_test,
    has_wildcard,
    label_numbers,
    name_test,
    split_glob,
)
from tarmill.spec import UploadSpec
from tarmill.storage.file_facts import raise_os_error
from tarmill.storage.urls import local_path
from tarmill.values import field, valueclass

LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_TARS = r"(?i).*\.(tar(\.\w+)?|tgz|tbz2?|txz|tzst)"
CLASSES = "classes.json"

LookAtAll = Callable[[Iterable[Run], int, Collector], None]


@valueclass
class Prefix:
    """What a store lists under a URL."""

    base: str
    """URL of the folder that names are relative to, with "/" at its end."""
    listed: str
    """What is asked for."""
    match: NameTest | None = None
    """Which of the names are meant; None for all."""


@valueclass(frozen=False)
class Sources:
    """What SOURCE... stands for."""

    trees: list[Tree] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    """Names and paths of files that were named by themselves; a link that is named is meant to be followed."""
    prefixes: list[Prefix] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    """URLs that were named by themselves."""


def resolve(spec: UploadSpec, out: ShardPattern) -> Sources:
    """Find out what each source is, and set what is wanted of it.

    Raises:
        UsageError: a source that is not there, or is something else.
    """
    found = Sources()
    for source in spec.sources:
        if source == "-":
            raise UsageError("`-`, a tar on standard input, must be the only source: its samples come in its own order")
        if storage.scheme_of(source) == "file":
            _resolve_local(source, spec, out, found)
        else:
            _resolve_remote(source, found)
    return found


def _resolve_local(source: str, spec: UploadSpec, out: ShardPattern, found: Sources) -> None:
    path = local_path(source)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not has_wildcard(path):
            raise UsageError(
                f"source {source!r} does not exist; expected a folder, a file, a glob in quotes, a URL, or '-'"
            ) from None
        folder, pattern = split_glob(path)
        depth = -1 if "**" in pattern else pattern.count("/")
        found.trees.append(_tree(folder, source, spec, out, depth=depth, match=glob_test(pattern)))
        return
    except OSError as error:
        raise_os_error(error, source, "looking at")
    if stat.S_ISDIR(mode):
        found.trees.append(_tree(path.rstrip("/") + "/", source, spec, out))
    elif not stat.S_ISREG(mode):
        raise UsageError(f"source {source!r} is neither a folder nor a regular file; a pipe is read as '-'")
    else:
        _refuse_special(source)
        found.files.append((os.path.basename(path), os.path.realpath(path)))


def _refuse_special(source: str) -> None:
    """Refuse files that somebody names by themselves and means their contents."""
    shown = storage.mask(source)
    if source.lower().endswith(LISTS):
        raise UsageError(
            f"source {shown!r} looks like a list; name its columns as in --column jpg=@path --column txt=caption, or "
            "pack the file itself by giving its folder and --include"
        )
    if re.fullmatch(_TARS, source):
        raise UsageError(
            f"source {shown!r} is a tar: give it on standard input, as in `htupload - OUT < {shown}`; shards are "
            "copied by htshuffle, htsort or tarmill cat"
        )


def _tree(
    base: str,
    source: str,
    spec: UploadSpec,
    out: ShardPattern,
    *,
    depth: int = -1,
    match: NameTest | None = None,
) -> Tree:
    keep = name_test(spec.include, spec.exclude)
    wanted = keep
    if match is not None:
        inner, test = match, keep

        def wanted(name: str) -> bool:
            return inner(name) and (test is None or test(name))

    own, is_own = own_outputs(base, out, spec)
    return Tree(
        base=base,
        label=source,
        keep=wanted,
        leave_folder=folder_test(spec.exclude),
        is_glob=match is not None,
        depth=depth,
        hidden=spec.hidden,
        follow=spec.follow_symlinks,
        own_folder=own,
        is_own=is_own,
        splits=spec.key_function == "base_plus_ext",
    )


def own_outputs(base: str, out: ShardPattern, spec: UploadSpec) -> tuple[str | None, Callable[[str], bool]]:
    """Tell which names below a source are outputs of this very job: what it writes it must not read.

    Returns:
        The folder of the outputs below `base` ("" or with "/" at its end), None where it is elsewhere; and the test.
    """
    if storage.scheme_of(spec.output) != "file":
        return None, lambda name: False
    there, here = os.path.realpath(local_path(out.folder or "./")), os.path.realpath(base or ".")
    if there != here and not there.startswith(here.rstrip("/") + "/"):
        return None, lambda name: False
    rel = os.path.relpath(there, here)
    shard = re.compile(numbered(out)) if out.is_open else None
    names = {f"{out.stem}{MANIFEST_SUFFIX}", "_tarmill/", CLASSES if spec.class_from_dir else ""}
    if shard is None:
        names |= {url.rpartition("/")[2] for url in out.expand()}
    return "" if rel == "." else rel + "/", lambda name: name in names or bool(shard and shard.fullmatch(name))


def _resolve_remote(source: str, found: Sources) -> None:
    if has_wildcard(source.partition("://")[2].partition("?")[0]) and storage.scheme_of(source) not in (
        "http",
        "https",
    ):
        folder, pattern = split_glob(source)
        found.prefixes.append(Prefix(folder, folder, glob_test(pattern)))
    elif source.endswith("/"):
        found.prefixes.append(Prefix(source, source))
    else:
        _resolve_object(source, found)


def _resolve_object(source: str, found: Sources) -> None:
    try:
        storage.stat(source)
    except NotFoundError:
        if storage.capabilities(source).can_list and next(iter(storage.list_urls(source + "/")), None) is not None:
            found.prefixes.append(Prefix(source + "/", source + "/"))
            return
        raise
    _refuse_special(source.partition("?")[0])
    found.objects.append(source)


# ---- samples --------------------------------------------------------------------------------------------------------


def collect(
    spec: UploadSpec, sources: Sources, collector: Collector, known_classes: dict[str, int], look_at_all: LookAtAll
) -> None:
    """Put the samples of all sources into the collector's listing, in the order of their keys.

    Args:
        spec: what to take, and how names divide.
        sources: as `resolve` found them.
        collector: takes samples, and what is wrong with them.
        known_classes: classes that have numbers already.
        look_at_all: looks at the files of one tree, in workers where there are very many.
    """
    plain = spec.key_function == "base_plus_ext" and not spec.key_prefix.startswith("__")
    if spec.class_from_dir:
        collector.found.classes = label_numbers(_class_names(sources, collector), known_classes)
    streams: list[Iterable[Entry]] = []
    for tree in sources.trees:
        if plain:
            collector.roots.append(tree.base)
            root = len(collector.roots) - 1
            runs = _runs_of_tree(spec, tree, collector)
            if len(spec.sources) == 1:
                look_at_all(runs, root, collector)
            else:
                streams.append(_looked_at(spec, runs, root, collector))
        else:
            streams.append(_grouped(spec, _files_of_tree(tree, collector), collector))
    if sources.files:
        files = ((name, _file(path, follow=False)) for name, path in sources.files)
        streams.append(_grouped(spec, files, collector))
    streams += [_grouped(spec, _listed(prefix, spec, collector), collector) for prefix in sources.prefixes]
    if sources.objects:
        objects = ((url.partition("?")[0].rpartition("/")[2], _object(storage.stat(url))) for url in sources.objects)
        streams.append(_grouped(spec, objects, collector))
    if streams:
        collector.take_sorted(streams)
    for tree in sources.trees:
        collector.found.skipped += tree.skipped


def _class_names(sources: Sources, collector: Collector) -> Sequence[str]:
    """List the first folders of all sources."""
    names: set[str] = set()
    for tree in sources.trees:
        try:
            _, folders = tree.list_folder("")
        except OSError:
            continue  # the walk will tell of it
        names.update(folder[:-1] for folder in folders)
        tree.skipped.clear()
    for prefix in sources.prefixes:
        below = (info.url[len(prefix.base) :] for info in storage.list_urls(prefix.listed))
        names.update(_unquoted(prefix, name).partition("/")[0] for name in below if "/" in name)
    return sorted(names)


def _runs_of_tree(spec: UploadSpec, tree: Tree, collector: Collector) -> Iterator[Run]:
    """Give the files of a tree with their class."""
    classes = collector.found.classes
    for rel, names in tree.runs(collector.folder_trouble):
        if spec.class_from_dir and not rel:
            _drop_without_class(spec, names, tree, collector)
        else:
            label = classes[rel.partition("/")[0]] if spec.class_from_dir else None
            yield Run(tree.base, rel, names, label)


def _looked_at(spec: UploadSpec, runs: Iterable[Run], root: int, collector: Collector) -> Iterator[Entry]:
    looked = Looked()
    for run in runs:
        yield from look(run, root, spec.key_prefix, spec.follow_symlinks, looked)
        if looked.problems or looked.empty:
            collector.note(looked)


def _drop_without_class(spec: UploadSpec, names: Sequence[str], tree: Tree, collector: Collector) -> None:
    for stem, _ in groupby(names, key=lambda name: name.partition(MARK)[0]):
        collector.drop(spec.key_prefix + stem, "no-class", _no_class(f"{tree.base}{stem}"))


def _no_class(path: str) -> str:
    return f"{path} is in no folder, and --class-from-dir takes the class from the first folder"


def _files_of_tree(tree: Tree, collector: Collector) -> Iterator[tuple[str, Part | OSError]]:
    """Give each file of a tree: its name below it, and the part without its field."""
    for rel, names in tree.runs(collector.folder_trouble):
        for marked in names:
            name = rel + marked.replace(MARK, ".", 1)
            yield name, _file(tree.base + name, tree.follow)


def _file(path: str, follow: bool) -> Part | OSError:
    try:
        found = os.stat(path) if follow else os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "it is no regular file any more", path)
    except OSError as error:
        return error
    return "", path, found.st_size, found.st_mtime_ns, found.st_ino


def _listed(prefix: Prefix, spec: UploadSpec, collector: Collector) -> Iterator[tuple[str, Part]]:
    """Give what a store lists: name below the prefix, and the part without its field."""
    keep, skipped = name_test(spec.include, spec.exclude), collector.found.skipped
    leave = folder_test(spec.exclude)
    for info in storage.list_urls(prefix.listed):
        name = _unquoted(prefix, info.url[len(prefix.base) :])
        if not name or name.endswith("/") or (prefix.match is not None and not prefix.match(name)):
            continue
        folders = name.split("/")[:-1]
        if not spec.hidden and (name[0] == "." or "/." in name):
            skipped["hidden"] += 1
        elif leave is not None and any(leave("/".join(folders[: n + 1])) for n in range(len(folders))):
            skipped["excluded"] += 1
        elif keep is not None and not keep(name):
            skipped["not-included"] += 1
        else:
            yield name, _object(info)


def _unquoted(prefix: Prefix, name: str) -> str:
    if storage.scheme_of(prefix.base) not in ("http", "https", "file"):
        return name
    from urllib.parse import unquote

    return unquote(name, errors="surrogateescape")


def _object(info: storage.Stat) -> Part:
    size = -1 if info.size_bytes is None else info.size_bytes
    return "", info.url, size, info.version, info.mtime_s


def _grouped(spec: UploadSpec, files: Iterable[tuple[str, Part | OSError]], collector: Collector) -> Iterator[Entry]:
    """Give an entry for each file that has a key, in the order of keys and fields."""
    split, found = key_function(spec.key_function), collector.found
    rows: list[tuple[str, Part]] = []
    bad: set[str] = set()
    for name, part in files:
        pair = split(name)
        if pair is None:
            found.skipped["no-extension" if spec.key_function == "base_plus_ext" else "no-key"] += 1
            continue
        key = spec.key_prefix + pair[0]
        if key in bad:
            continue
        if isinstance(part, OSError):
            fault: tuple[str, str] | None = problem_of(part, str(part.filename))
        else:
            where = storage.mask(str(part[1]))
            fault = fault_of_field(pair[1]) or fault_of_key(key)
            if fault is not None:
                fault = fault[0], f"{where}: {fault[1]}"
            elif spec.class_from_dir and "/" not in name:
                fault = "no-class", _no_class(where)
        if fault is not None:
            collector.drop(key, *fault)
            bad.add(key)
            continue
        assert not isinstance(part, OSError)
        found.empty += not part[2]
        rows.append((key, (pair[1], *part[1:])))
        if spec.class_from_dir:
            rows.append((key, label_part(found.classes[name.partition("/")[0]])))
    rows.sort(key=lambda row: (row[0], row[1][0], row[1][1] or ""))
    for key, row in rows:
        if key not in bad:
            yield key, -1, (row,)


def first_local(collector: Collector) -> tuple[str, str] | None:
    """Give path and version of a local file that is to be packed, for workers to be asked whether they see it."""
    for entry in collector.found.listing:
        for part in collector.explicit(entry):
            if part[1] and isinstance(part[4], int):
                return part[1], f"{part[3]:x}-{part[2]:x}-{part[4]:x}"
        return None
    return None
