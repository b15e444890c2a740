"""One shard of an upload, in a worker: files, objects and values into a tar; the function that engines run."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import repeat
from typing import Any

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import ChangedError, StorageError, TarmillError
from tarmill.formats.tar_write import TarSink
from tarmill.heap import own_memory
from tarmill.jobs.inputs import name_in
from tarmill.jobs.manifests import rejected_part, save_shard
from tarmill.jobs.shard_io import ShardOutput
from tarmill.jobs.upload_collect import path_of
from tarmill.jobs.upload_look import open_folder, reason_of
from tarmill.planning.counts import Counts
from tarmill.planning.tasks import ShardDone
from tarmill.planning.upload_listing import Entry, Part
from tarmill.planning.upload_tasks import UploadTask
from tarmill.storage.file_facts import raise_os_error
from tarmill.values import field, replace, valueclass

LARGE_BYTES = 16 << 20
"""A sample with more is written as it is read, and not held."""
_BIG_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What is wrong with this process, not with the file."""

# A FIFO that has taken a file's place must not block; a terminal must not become ours.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class _Folder:
    """Where the last sample's files lie; open from its second sample on, to spare the kernel a walk for each file."""

    __slots__ = ("fd", "path", "tried")

    def __init__(self) -> None:
        self.path: str | None = None
        self.fd: int | None = None
        self.tried = False

    def leave(self, path: str) -> None:
        """Go on in another folder, of which nothing is open yet: in random order it may be left at once."""
        if self.fd is not None:
            os.close(self.fd)
        self.path, self.fd, self.tried = path, None, False

    def open(self) -> None:
        """Open the folder; where that cannot be, `fd` stays None and whole paths tell why."""
        self.tried = True
        self.fd = open_folder(f"{self.path}/")

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave("")


Fetched = dict[str, bytes | TarmillError]
_NOTHING: Fetched = {}


class _Large(Exception):
    """A sample has an object that was not fetched ahead, for its size."""


class SampleTrouble(Exception):
    """A sample cannot be had; the shard may do without it."""

    def __init__(self, error: TarmillError) -> None:
        super().__init__(error.message)
        self.error = error


def upload_shard(task: UploadTask) -> ShardDone:
    """Write one shard and commit it.

    Raises:
        ChangedError, NotFoundError, StorageError: a file or object cannot be had, under `--on-error fail`; the shard
            does not appear.
        StorageError: writing failed for good.
    """
    storage.configure(task.job.settings)
    shard = ShardUpload(task, current())
    while True:
        done = shard.write()
        if done is not None:
            return done


@valueclass(frozen=False)
class ShardUpload:
    """The samples of one shard; written again without a sample that broke off when a part of it was written already."""

    task: UploadTask
    meter: Meter
    left_out: dict[int, TarmillError] = field(default_factory=dict)
    """Samples that cannot be had, by their place in the shard."""
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> ShardDone | None:
        """Write the shard; None where that has to be done again."""
        task, meter, job = self.task, self.meter, self.task.job
        meter.samples = meter.read_bytes = meter.written_bytes = 0
        self.rejected = []
        name = name_in(job.folder, task.output)
        with ShardOutput(task.output, name, job.job, job.spec.level, meter) as output:
            patient = job.settings
            if job.remote:  # what a list names may be gone: not worth the patience that an output is
                budget = min(patient.retry_budget_s, job.spec.fetch_timeout)
                storage.configure(replace(patient, retry_budget_s=budget))
            try:
                if not self._add_all(output.sink):
                    return None
            finally:
                storage.configure(patient)
            committed = output.commit()
        counts = Counts(read=task.samples, written=committed.samples)
        for error in self.left_out.values():
            counts.dropped[reason_of(error)] += 1
        counts.read_bytes, counts.written_bytes = meter.read_bytes, committed.size_bytes
        if job.state and self.rejected:
            lines = "".join(json.dumps(line) + "\n" for line in self.rejected)
            storage.write_bytes(rejected_part(job.state, task.index), lines.encode(), owner=job.job)
        done = ShardDone(task.index, counts, committed, len(self.rejected))
        if job.state:
            save_shard(job.state, done, job.job)
        return done

    def _add_all(self, sink: TarSink) -> bool:
        """Add all samples; False where one broke off when a part of it was written already."""
        entries = self.task.entries(self._read_listing)
        if self.task.job.remote:
            from tarmill.jobs.upload_fetch import with_objects

            with closing(with_objects(entries, self.task.job.spec)) as found:
                return self._add_each(sink, found)
        return self._add_each(sink, zip(entries, repeat(_NOTHING)))

    def _add_each(self, sink: TarSink, found: Iterable[tuple[Entry, Fetched]]) -> bool:
        with _Folder() as folder:
            return self._add_from(folder, sink, found)

    def _add_from(self, folder: _Folder, sink: TarSink, found: Iterable[tuple[Entry, Fetched]]) -> bool:
        """The hot loop: for each file one open, read, fstat and close."""
        meter, left_out, add, job = self.meter, self.left_out, sink.add, self.task.job
        bases, cut, flags = job.roots, len(job.spec.key_prefix), _FLAGS | (0 if job.follow else os.O_NOFOLLOW)
        open_, read, fstat, close = os.open, os.read, os.fstat, os.close
        front = near = ""
        folder_fd: int | None = None
        for place, (entry, fetched) in enumerate(found):
            key, root, parts = entry
            meter.key = key
            meter.samples = place + 1
            if left_out and place in left_out:
                self._reject(key, left_out[place])
                continue
            if root >= 0:
                front = f"{bases[root]}{key[cut:]}."
                path_of_folder, _, near = front.rpartition("/")
                if path_of_folder != folder.path:
                    folder.leave(path_of_folder)
                elif not folder.tried:
                    folder.open()
                if (folder_fd := folder.fd) is None:
                    near = front
            record: dict[str, Any] = {}
            held = 0
            path: str | None = ""
            try:
                for name, path, size, mtime_ns, inode in parts:
                    if inode.__class__ is not int:
                        body = mtime_ns if path is None else _of(fetched, name)
                        held += len(body)
                    else:
                        held += size
                        if held > LARGE_BYTES or (size > _BIG_BYTES and _total(parts) > LARGE_BYTES):
                            held = LARGE_BYTES + 1
                            break
                        fd = open_(path, flags) if path else open_(near + name, flags, dir_fd=folder_fd)
                        try:
                            body = read(fd, size + 1)  # one more, to notice that it has grown
                            now = fstat(fd)
                            if len(body) != size or now.st_mtime_ns != mtime_ns or now.st_ino != inode:
                                body = _again(fd, body, now, path or front + name, size, mtime_ns, inode)
                        finally:
                            close(fd)
                    record[name] = body
            except OSError as error:
                self._leave_out(place, key, _told(error, path or front + name))
                continue
            except _Large:
                held = LARGE_BYTES + 1
            except TarmillError as error:
                self._leave_out(place, key, error)
                continue
            if held > LARGE_BYTES:
                if not self._add_large(sink, place, entry, fetched):
                    return False
            else:
                add(record, key)
                meter.read_bytes += held
        return True

    def _add_large(self, sink: TarSink, place: int, entry: Entry, fetched: Fetched) -> bool:
        """Add a sample as it is read; False where it broke off."""
        try:
            sink.add_streams(entry[0], {part[0]: self._stream(entry, part, fetched) for part in entry[2]})
        except SampleTrouble as trouble:
            self._leave_out(place, entry[0], trouble.error)
            return False
        return True

    def _stream(self, entry: Entry, part: Part, fetched: Fetched) -> Callable[[], tuple[int, Iterable[Any]]]:
        """Give what opens one field of a large sample."""
        name, _, size, value, inode = part
        job = self.task.job
        path = path_of(part, entry[0], job.roots[entry[1]] if entry[1] >= 0 else "", job.spec.key_prefix)
        data: Any = value if path is None else fetched.get(name)
        if isinstance(data, bytes):
            return lambda: (len(data), self._counted([data]))
        if isinstance(inode, int):
            assert path is not None
            return lambda: (size, self._counted(_blocks_of_file(path, part, job.follow)))

        def open_it() -> tuple[int, Iterable[Any]]:
            from tarmill.jobs.upload_fetch import fetch, open_object

            try:
                stream = open_object(part)
                if stream.stat.size_bytes is None:
                    stream.close()
                    whole = fetch(part, job.spec.max_member)
                    return len(whole), self._counted([whole])
            except TarmillError as error:
                raise SampleTrouble(error) from None
            return stream.stat.size_bytes, self._counted(_blocks_of_object(stream))

        return open_it

    def _counted(self, blocks: Iterable[Any]) -> Iterator[Any]:
        for block in blocks:
            self.meter.read_bytes += len(block)
            yield block

    def _leave_out(self, place: int, key: str, error: TarmillError) -> None:
        """Treat a sample that cannot be had as the policy says."""
        if self.task.job.spec.on_error == "fail":
            facts = {**error.facts, "key": key, "shard": self.task.label}
            raise type(error)(f"{error.message} (sample {key!r}; --on-error skip leaves such samples out)", **facts)
        self.left_out[place] = error
        self._reject(key, error)

    def _reject(self, key: str, error: TarmillError) -> None:
        reason = reason_of(error)
        line = {"shard": self.task.label, "key": key, "reason": reason, "message": error.message, "kept": False}
        self.rejected.append(line)

    def _read_listing(self, offset: int, length: int) -> bytes:
        task = self.task
        return storage.read_ranges(task.listing, [(offset, length)], version=task.version)[0]


def _total(parts: Iterable[Part]) -> int:
    return sum(part[2] for part in parts)


def _of(fetched: Fetched, name: str) -> bytes:
    """Give a fetched field; raises what went wrong with it, and `_Large` where it was not fetched for its size."""
    found = fetched.get(name)
    if found is None:
        raise _Large
    if isinstance(found, TarmillError):
        raise found
    return found


def _told(error: OSError, path: str) -> TarmillError:
    """Tell what the kernel says of a file; what is wrong with this process is raised."""
    try:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ChangedError(f"{path} was a file when it was listed, and is none now; run it again", url=path)
        raise_os_error(error, path, "reading")
    except StorageError as told:
        if error.errno in _OURS:
            raise
        return told


def _again(fd: int, body: bytes, now: os.stat_result, path: str, size: int, mtime_ns: int, inode: int) -> bytes:
    """Read on a file that gave fewer bytes than were asked for, as network file systems do.

    Raises:
        ChangedError: it is not what it was when it was listed.
    """
    pieces, have = [body], len(body)
    while body and have <= size and (body := os.read(fd, size + 1 - have)):
        pieces.append(body)
        have += len(body)
    if len(pieces) > 1:
        now = os.fstat(fd)
    if have != size or (now.st_size, now.st_mtime_ns, now.st_ino) != (size, mtime_ns, inode):
        raise _changed(path, size, now.st_size)
    return b"".join(pieces)


def _changed(path: str, size: int, size_now: int) -> ChangedError:
    return ChangedError(
        f"{path} was changed since it was listed: {size} bytes then, {size_now} now; run it again when nothing writes "
        "to it",
        url=path,
    )


def _blocks_of_file(path: str, part: Part, follow: bool) -> Iterator[memoryview]:
    """Read a file in blocks; raises SampleTrouble where it is not what was listed."""
    _, _, size, mtime_ns, inode = part
    buffer = own_memory(_BLOCK_BYTES)
    fd, done = -1, 0
    try:
        fd = os.open(path, _FLAGS | (0 if follow else os.O_NOFOLLOW))
        with memoryview(buffer) as view:
            while count := os.readv(fd, [view]):
                done += count
                if done > size:
                    break
                yield view[:count]
        now = os.fstat(fd)
        if done != size or (now.st_size, now.st_mtime_ns, now.st_ino) != (size, mtime_ns, inode):
            raise SampleTrouble(_changed(path, size, now.st_size))
    except OSError as error:
        raise SampleTrouble(_told(error, path)) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _blocks_of_object(stream: storage.ReadStream) -> Iterator[Any]:
    from tarmill.jobs.upload_fetch import blocks_of

    try:
        with stream:
            yield from blocks_of(stream, 1 << 62)
            stream.verify()
    except TarmillError as error:
        raise SampleTrouble(error) from None
