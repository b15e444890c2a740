"""Buffers are a process's own, and memory which samples have freed is used again without the kernel's help."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tarmill.heap import own_memory

LOOP = """
import resource
from tarmill.heap import keep_freed_memory
{call}
for _ in range(300):
    pieces = [b"x" * 100_000 for _ in range(5)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(call: str) -> int:
    done = subprocess.run([sys.executable, "-c", LOOP.format(call=call)], capture_output=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_samples_of_some_size_take_the_memory_that_earlier_ones_have_freed() -> None:
    assert page_faults("") - page_faults("keep_freed_memory()") > 300 * 50


def test_memory_of_a_copy_of_the_process_is_its_own() -> None:
    ours = own_memory(4096)
    if (copy := os.fork()) == 0:
        ours[:5] = b"other"
        os._exit(0)
    os.waitpid(copy, 0)
    assert ours[:5] == bytes(5)
