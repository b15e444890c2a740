"""What the sources of an upload hold: folders, files, globs, prefixes of stores; where each field is."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from tarmill import storage
from tarmill.errors import ChangedError
from tarmill.formats.keys import key_function
from tarmill.jobs.upload_collect import Collector
from tarmill.jobs.upload_look import Looked, look, problem_of
from tarmill.jobs.upload_resolve import Prefix, Sources
from tarmill.jobs.upload_tree import Tree
from tarmill.planning.upload_listing import Entry, Part
from tarmill.planning.upload_names import (
    fault_of_field,
    fault_of_key,
    folder_test,
    label_numbers,
    name_test,
)
from tarmill.planning.upload_runs import MARK, Run, label_part
from tarmill.spec import UploadSpec
from tarmill.storage.file_facts import version_of

LookAtAll = Callable[[Iterable[Run], int, Collector], None]


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
            label = _label_of(rel.partition("/")[0], classes, tree) if spec.class_from_dir else None
            yield Run(tree.base, rel, names, label)


def _label_of(name: str, classes: dict[str, int], tree: Tree) -> int:
    if name not in classes:
        folder = f"{tree.base}{name}/"
        raise ChangedError(f"{folder} came when classes were counted already; run it again", url=folder)
    return classes[name]


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
                if part[2] < 0:
                    try:
                        return part[1], version_of(os.stat(part[1], follow_symlinks=collector.spec.follow_symlinks))
                    except OSError:
                        continue  # who packs it will tell
                return part[1], f"{part[3]:x}-{part[2]:x}-{part[4]:x}"
        if not collector.found.by_name:
            return None
    return None
