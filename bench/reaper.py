"""Run one command and tell what its whole process tree cost; started by `measure.py` as a small process of its own.

usage: python -I -S reaper.py RESULT_FD SECONDS COMMAND...

It makes itself a subreaper (Linux), so that grandchildren whose parent leaves early (the workers of a fork server) are
handed to it instead of to init: it waits for all of them, and the kernel adds their CPU time to RUSAGE_CHILDREN. It is
a process of its own since a child's peak memory begins with that of the process it was forked from: this one is small.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def children() -> list[int]:
    """Tell which processes are left to wait for."""
    with open(f"/proc/self/task/{os.getpid()}/children") as listing:
        return [int(pid) for pid in listing.read().split()]


def main(result_fd: int, limit_s: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopped_by_us: list[int] = []

    def too_long(*_: object) -> None:
        stopped_by_us.extend(children())
        for pid in stopped_by_us:
            os.kill(pid, signal.SIGKILL)
        signal.alarm(1)  # those that they leave behind come to us: once more

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit_s)
    start = time.perf_counter()
    os.set_inheritable(result_fd, False)
    child = os.posix_spawnp(command[0], command, os.environ)
    status, end, waited = 0, start, 0
    while True:
        try:
            pid, code = os.wait()
        except ChildProcessError:
            break
        waited += 1
        if pid == child:
            status, end = os.waitstatus_to_exitcode(code), time.perf_counter()
    signal.alarm(0)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "status": status,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": end - start,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "reaped": waited,
        "stopped": stopped_by_us,
    }
    os.write(result_fd, json.dumps(result).encode())


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
