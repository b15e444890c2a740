"""What SOURCE... stands for: folders, files, globs, prefixes of stores."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable

from tarmill import storage
from tarmill.errors import NotFoundError, UsageError
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.cut_outputs import numbered
from tarmill.jobs.inputs import MANIFEST_SUFFIX
from tarmill.jobs.upload_tree import Tree
from tarmill.planning.upload_names import (
    NameTest,
    folder_test,
    glob_test,
    has_wildcard,
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
