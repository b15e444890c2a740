"""One shard of an upload, in a worker: files, objects and values into a tar; the function that engines run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import repeat
from typing import Any, cast

from tarmill import storage
from tarmill.engine.meter import Meter, current
from tarmill.errors import ChangedError, TarmillError
from tarmill.formats.tar_write import TarSink
from tarmill.jobs.inputs import name_in
from tarmill.jobs.manifests import rejected_part, save_shard
from tarmill.jobs.shard_io import ShardOutput
from tarmill.jobs.upload_collect import path_of, paths_of
from tarmill.jobs.upload_files import (
    CALM_NS,
    FLAGS,
    MANY_NUMBERS,
    Folder,
    Fresh,
    Large,
    SampleTrouble,
    Seen,
    blocks_of,
    look_now,
    read_listed,
    read_still,
    told,
)
from tarmill.jobs.upload_look import reason_of
from tarmill.planning.counts import Counts
from tarmill.planning.tasks import ShardDone
from tarmill.planning.upload_listing import Entry, Packed, Part, whole
from tarmill.planning.upload_tasks import UploadTask
from tarmill.values import field, replace, valueclass

LARGE_BYTES = 16 << 20
"""A sample with more is written as it is read, and not held."""
_BIG_BYTES = 1 << 20
_GUESS_BYTES = 64 << 10
"""Asked first of a file whose size nobody knows; most have less."""
_MOST_GUESSED_BYTES = 1 << 20
"""Asked first where files turn out to be larger."""

Fetched = dict[str, bytes | TarmillError]
_NOTHING: Fetched = {}


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
    seen: Seen = field(default_factory=Seen)
    fresh: Fresh = field(default_factory=Fresh)

    def write(self) -> ShardDone | None:
        """Write the shard; None where that has to be done again."""
        task, meter, job = self.task, self.meter, self.task.job
        meter.samples = meter.read_bytes = meter.written_bytes = 0
        self.rejected, self.seen, self.fresh = [], Seen(), Fresh()
        name = name_in(job.folder, task.output)
        with ShardOutput(task.output, name, job.job, job.spec.level, meter) as output:
            patient = job.settings
            if job.remote:  # what a list names may be gone: not worth the patience that an output is
                budget = min(patient.retry_budget_s, job.spec.fetch_timeout)
                storage.configure(replace(patient, retry_budget_s=budget))
            try:
                if not self._add_all(output.sink) or self._have_changed():
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
        seen = self.seen.hexdigest() if job.begun_ns else ""
        left_out = tuple(sorted(self.left_out)) if job.begun_ns else ()
        done = ShardDone(task.index, counts, committed, len(self.rejected), seen=seen, left_out=left_out)
        if job.state:
            save_shard(job.state, done, job.job)
        return done

    def _add_all(self, sink: TarSink) -> bool:
        """Add all samples; False where one broke off when a part of it was written already."""
        entries = self.task.entries(self._read_listing)
        if self.task.job.remote:
            from tarmill.jobs.upload_fetch import with_objects

            looked_at = cast(Iterator[Entry], entries)  # only trees of this machine are listed by name
            with closing(with_objects(looked_at, self.task.job.spec)) as found:
                return self._add_each(sink, found)
        return self._add_each(sink, zip(entries, repeat(_NOTHING)))

    def _add_each(self, sink: TarSink, found: Iterable[tuple[Packed, Fetched]]) -> bool:
        with Folder() as folder:
            return self._add_from(folder, sink, found)

    def _add_from(self, folder: Folder, sink: TarSink, found: Iterable[tuple[Packed, Fetched]]) -> bool:
        """The hot loop: for each file one open, read, fstat and close."""
        meter, left_out, add, job = self.meter, self.left_out, sink.add, self.task.job
        bases, cut, flags = job.roots, len(job.spec.key_prefix), FLAGS | (0 if job.follow else os.O_NOFOLLOW)
        seen, numbers, calm_ns = self.seen, self.seen.numbers, job.begun_ns - CALM_NS
        open_, read, fstat, close = os.open, os.read, os.fstat, os.close
        front, near, guess = "", "", _GUESS_BYTES
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
            before, is_fresh = len(numbers), False
            try:
                for part in parts:
                    if isinstance(part, str):
                        name = part
                        fd = open_(near + name, flags, dir_fd=folder_fd)
                        try:
                            body = read(fd, guess)
                            now = fstat(fd)
                            size = len(body)
                            if size != now.st_size or not size or now.st_ctime_ns > calm_ns:
                                body, now = read_still(fd, body, now, front + name, LARGE_BYTES - held, calm_ns)
                                size = len(body)
                                is_fresh = is_fresh or now.st_ctime_ns > calm_ns
                                guess = max(guess, min(2 * size, _MOST_GUESSED_BYTES))
                        finally:
                            close(fd)
                        numbers += (size, now.st_mtime_ns, now.st_ino)
                        held += size
                    else:
                        if isinstance(part[4], int) and part[2] > _BIG_BYTES and _total(parts) > LARGE_BYTES:
                            raise Large
                        name = part[0]
                        body = _body_of(part, part[1] or front + name, near + name, flags, folder_fd, fetched)
                        held += len(body)
                    record[name] = body
                    # what was fetched is held already, and more of it may be in trouble
                    if held > LARGE_BYTES and (isinstance(part, str) or isinstance(part[4], int)):
                        raise Large
                if held > LARGE_BYTES:
                    raise Large
            except Large:
                del numbers[before:]
                if not self._add_large(sink, place, entry, fetched):
                    return False
            except (OSError, TarmillError) as error:
                del numbers[before:]
                where = front + part if isinstance(part, str) else part[1] or front + part[0]
                self._leave_out(place, key, told(error, where))
            else:
                add(record, key)
                meter.read_bytes += held
                if is_fresh:
                    self.fresh.add(place, numbers[before:])
            if len(numbers) > MANY_NUMBERS:
                seen.settle()
        return True

    def _add_large(self, sink: TarSink, place: int, entry: Packed, fetched: Fetched) -> bool:
        """Add a sample as it is read; False where it broke off."""
        key, root, parts = entry
        looked: dict[str, tuple[Part, int]] = {}
        streams = {
            part if isinstance(part, str) else part[0]: self._stream(key, root, part, fetched, looked) for part in parts
        }
        try:
            sink.add_streams(key, streams)
        except SampleTrouble as trouble:
            self._leave_out(place, key, trouble.error)
            return False
        numbers = [number for part in parts if isinstance(part, str) for number in looked[part][0][2:]]
        self.seen.numbers += numbers
        if any(changed_ns > self.task.job.begun_ns - CALM_NS for _, changed_ns in looked.values()):
            self.fresh.add(place, numbers)
        return True

    def _stream(
        self, key: str, root: int, part: Part | str, fetched: Fetched, looked: dict[str, tuple[Part, int]]
    ) -> Callable[[], tuple[int, Iterable[Any]]]:
        """Give what opens one field of a large sample; of a file that was listed by name, `looked` takes what it is."""
        job = self.task.job
        base = job.roots[root] if root >= 0 else ""
        if isinstance(part, str):
            return partial(self._open_unseen, part, f"{base}{key[len(job.spec.key_prefix) :]}.{part}", looked)
        name, _, size, value, inode = part
        path = path_of(part, key, base, job.spec.key_prefix)
        data: Any = value if path is None else fetched.get(name)
        if isinstance(data, bytes):
            return lambda: (len(data), self._counted([data]))
        if isinstance(inode, int):
            assert path is not None
            return lambda: (size, self._counted(blocks_of(path, part, job.follow)))

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

    def _open_unseen(self, field: str, path: str, looked: dict[str, tuple[Part, int]]) -> tuple[int, Iterable[Any]]:
        """Open a field at whose file nobody has looked."""
        follow = self.task.job.follow
        part, changed_ns = look_now(path, follow)
        looked[field] = part, changed_ns
        return part[2], self._counted(blocks_of(path, part, follow, changed_ns))

    def _have_changed(self) -> bool:
        """Tell whether files that had changed lately have changed since they were read; such samples are left out."""
        job, task = self.task.job, self.task
        known = len(self.left_out)
        for place, entry, state in self.fresh.among(task.entries(self._read_listing)):
            key, paths = entry[0], paths_of(whole(entry), job.roots, job.spec.key_prefix)
            try:
                now = [number for path in paths for number in look_now(path, job.follow)[0][2:]]
            except SampleTrouble as trouble:
                self._leave_out(place, key, trouble.error)
                continue
            if hash(tuple(now)) != state:
                names = " or ".join(paths)
                message = f"{names} was changed soon after it was read; run it again when nothing writes to it"
                self._leave_out(place, key, ChangedError(message, url=paths[0]))
        return len(self.left_out) > known

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


def _total(parts: Iterable[Part | str]) -> int:
    return sum(part[2] for part in parts if not isinstance(part, str))


def _body_of(part: Part, path: str, near: str, flags: int, folder_fd: int | None, fetched: Fetched) -> bytes:
    """Give a field that was looked at when it was listed.

    Args:
        part: the field.
        path: of its file, where it has one.
        near: the same from the folder that is open.
        flags: to open it with.
        folder_fd: that folder.
        fetched: what was fetched of the sample.
    """
    if not isinstance(part[4], int):
        return part[3] if part[1] is None else _of(fetched, part[0])
    fd = os.open(path, flags) if part[1] else os.open(near, flags, dir_fd=folder_fd)
    try:
        return read_listed(fd, path, part)
    finally:
        os.close(fd)


def _of(fetched: Fetched, name: str) -> bytes:
    """Give a fetched field; raises what went wrong with it, and `Large` where it was not fetched for its size."""
    found = fetched.get(name)
    if found is None:
        raise Large
    if isinstance(found, TarmillError):
        raise found
    return found


def _blocks_of_object(stream: storage.ReadStream) -> Iterator[Any]:
    from tarmill.jobs.upload_fetch import blocks_of

    try:
        with stream:
            yield from blocks_of(stream, 1 << 62)
            stream.verify()
    except TarmillError as error:
        raise SampleTrouble(error) from None
