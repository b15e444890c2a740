"""Run one command and tell what its whole process tree cost; started by `measure.py` as a small process of its own.

usage: python -I -S reaper.py RESULT_FD SECONDS COMMAND...

It makes itself a subreaper (Linux), so that grandchildren whose parent leaves early (the workers of a fork server) are
handed to it instead of to init: it waits for all of them, and the kernel adds their CPU time to RUSAGE_CHILDREN. It is
a process of its own since a child's peak memory begins with that of the process it was forked from: this one is small.

The kernel's peak (ru_maxrss) counts pages of mapped files, which cost nothing that others could use: it may drop them
at any time. So every 10 ms the reaper also looks at each process's anonymous memory (RssAnon in /proc/PID/status), what
the process has made itself. What is allocated and freed between two looks is missed; no kernel counter keeps that peak.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.01


def children(pid: int | None = None) -> list[int]:
    """Tell which processes are left to wait for, or the children of another process."""
    found = []
    home = f"/proc/{pid or os.getpid()}/task"
    for thread in os.listdir(home):
        with open(f"{home}/{thread}/children") as listing:
            found += [int(child) for child in listing.read().split()]
    return found


def anonymous_bytes(pid: int | None = None) -> list[int]:
    """Give the anonymous memory of each process below this one."""
    sizes = []
    for child in children(pid):
        try:
            with open(f"/proc/{child}/status", "rb") as status:
                _, _, rest = status.read().partition(b"RssAnon:")
            sizes += [int(rest.split(None, 1)[0]) << 10] if rest else []  # a zombie has none
            sizes += anonymous_bytes(child)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return sizes


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
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # so that it waits for us to ask for it
    child = os.posix_spawnp(command[0], command, os.environ, setsigmask=[])
    status, end, waited, peak, peak_of_all = 0, start, 0, 0, 0
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not pid:
            sizes = anonymous_bytes()
            peak, peak_of_all = max([peak, *sizes]), max(peak_of_all, sum(sizes))
            signal.sigtimedwait([signal.SIGCHLD], LOOK_S)
            continue
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
        "peak_anon_bytes": peak,
        "peak_anon_bytes_of_all": peak_of_all,
        "read_bytes": usage.ru_inblock * 512,
        "reaped": waited,
        "stopped": stopped_by_us,
    }
    os.write(result_fd, json.dumps(result).encode())


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
