"""The files of a folder, in the order of their keys, without looking at any file by itself.

A folder's samples come before, between and behind its folders in such a way that all keys rise over the whole tree;
nothing but the names of one folder on each level is held. What is no regular file is counted and left alone.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tarmill.formats.keys import base_plus_ext
from tarmill.planning.upload_names import NameTest
from tarmill.planning.upload_runs import MARK
from tarmill.values import field, valueclass

FolderTrouble = Callable[[str, OSError], None]
"""Is told of a folder that cannot be looked into; raises, or it is left out."""


@valueclass(frozen=False)
class Tree:
    """A folder whose files are wanted."""

    base: str
    """Its path, with "/" at the end; "" for the current folder."""
    label: str
    """As the user wrote it."""
    keep: NameTest | None = None
    """Whether a file is wanted, by its path below `base`; None for all."""
    leave_folder: NameTest | None = None
    """Whether a folder is left out, by its path below `base`."""
    is_glob: bool = False
    """Whether what `keep` refuses was never asked for, and so is not counted."""
    depth: int = -1
    """How many folders deep to look; -1 for any number."""
    hidden: bool = False
    follow: bool = False
    own_folder: str | None = None
    """The folder below `base` where this very job writes; None where that is elsewhere."""
    is_own: NameTest = bool
    """Whether a name in it is that of an output; folders end in "/"."""
    splits: bool = True
    """Whether names divide by `base_plus_ext`, so that those which do not are left out here."""
    skipped: Counter[str] = field(default_factory=Counter)
    """What was left out, by kind."""

    def runs(self, trouble: FolderTrouble) -> Iterator[tuple[str, list[str]]]:
        """Give (folder below `base` with "/" at its end, or "", its files), all in the order of keys and fields.

        The first dot of a name is a `MARK`.

        A folder with folders in it comes in several pieces.
        """
        stack: list[Iterator[Any]] = []
        above: list[tuple[int, int]] = []
        rel: str | None = ""
        while rel is not None or stack:
            if rel is not None:
                above.append(self._identity(rel))
                stack.append(iter(()) if self._is_circle(above) else self._steps(rel, trouble))
            step = next(stack[-1], None)
            rel = step if isinstance(step, str) else None
            if step is None:
                stack.pop()
                above.pop()
            elif rel is None:
                yield step

    def _steps(self, rel: str, trouble: FolderTrouble) -> Iterator[Any]:
        """Give the pieces of one folder, and the paths of folders in it where their files belong."""
        try:
            files, folders = self.list_folder(rel)
        except OSError as error:
            trouble(self.base + rel, error)
            return
        at = 0
        for name in folders:
            # keys below it begin with its name and "/"; no stem has a "/"
            stop = bisect_left(files, name, at)
            if stop > at:
                yield rel, files[at:stop]
                at = stop
            yield rel + name
        if at < len(files):
            yield rel, files[at:] if at else files

    def _identity(self, rel: str) -> tuple[int, int]:
        """Tell which folder it is, where symbolic links may lead in circles."""
        if not self.follow:
            return 0, 0
        try:
            found = os.stat(self.base + rel or ".")
        except OSError:
            return 0, 0  # listing it will tell why
        return found.st_dev, found.st_ino

    def _is_circle(self, above: list[tuple[int, int]]) -> bool:
        if not self.follow or above[-1] not in above[:-1] or above[-1] == (0, 0):
            return False
        self.skipped["symlink-circle"] += 1
        return True

    def list_folder(self, rel: str) -> tuple[list[str], list[str]]:
        """List one folder: files in order of key and field, folders with "/" at their ends in the order of keys."""
        names: list[str] = []
        others: list[os.DirEntry[str]] = []
        with os.scandir(self.base + rel or ".") as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    names.append(entry.name)
                else:
                    others.append(entry)
        files = [name.replace(".", MARK, 1) for name in names]
        if not self._are_all_taken(rel, files):
            files = [name.replace(".", MARK, 1) for name in names if self._take_plain(rel, name)]
        folders: list[str] = []
        for entry in others:
            self._take_other(rel, entry, files, folders)
        files.sort()
        folders.sort()
        return files, folders

    def _are_all_taken(self, rel: str, marked: list[str]) -> bool:
        """Tell whether all files can be in samples for sure, as in most folders, by their names with marks."""
        if self.keep is not None or not self.splits or rel == self.own_folder:
            return False
        joined = "/".join(("", *marked))
        is_reserved = not rel and "/__" in joined
        return joined.count(MARK) == len(marked) and f"/{MARK}" not in joined and not is_reserved

    def _take_plain(self, rel: str, name: str) -> bool:
        """Tell whether a regular file is wanted, and count it where not."""
        if name[0] == "." and not self.hidden:
            self._count("hidden", rel + name)
            return False
        if not self._take(rel, name):
            return False
        if self.keep is None or self.keep(rel + name):
            return True
        if not self.is_glob:
            self.skipped["not-included"] += 1
        return False

    def _take(self, rel: str, name: str) -> bool:
        """Tell whether a file can be in a sample, and count it where not."""
        if rel == self.own_folder and self.is_own(name):
            self.skipped["own-output"] += 1
            return False
        if self.splits and base_plus_ext(rel + name) is None:
            if self.keep is None or self.keep(rel + name):
                kind = "metadata" if name[:2] == "__" and not rel else "no-extension"
                self.skipped["hidden" if name[0] == "." else kind] += 1
            elif not self.is_glob:
                self.skipped["not-included"] += 1
            return False
        return True

    def _take_other(self, rel: str, entry: os.DirEntry[str], files: list[str], folders: list[str]) -> None:
        """Treat what is no plain file with a plain name."""
        name = entry.name
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link that cannot be followed
            is_folder = is_file = False
        if entry.is_symlink() and (not self.follow or not (is_folder or is_file)):
            self._count("dangling-symlink" if self.follow else "symlink", rel + name)
        elif is_folder:
            self._take_folder(rel, name, folders)
        elif not is_file and (name[0] != "." or self.hidden):
            self._count(_kind_of(entry), rel + name)
        elif self._take_plain(rel, name):
            files.append(name.replace(".", MARK, 1))

    def _take_folder(self, rel: str, name: str, folders: list[str]) -> None:
        if rel == self.own_folder and self.is_own(name + "/"):
            return
        if name[0] == "." and not self.hidden:
            self._count("hidden-folder", rel + name)
        elif self.splits and not rel and base_plus_ext(f"{name}/a.b") is None:
            self.skipped["metadata-folder"] += 1
        elif self.leave_folder is not None and self.leave_folder(rel + name):
            self.skipped["excluded-folder"] += 1
        elif self.depth < 0 or rel.count("/") < self.depth:
            folders.append(name + "/")

    def _count(self, kind: str, name: str) -> None:
        if not self.is_glob or self.keep is None or self.keep(name):
            self.skipped[kind] += 1


def _kind_of(entry: os.DirEntry[str]) -> str:
    import stat

    try:
        mode = entry.stat().st_mode
    except OSError:
        return "vanished"
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "socket" if stat.S_ISSOCK(mode) else "device"
