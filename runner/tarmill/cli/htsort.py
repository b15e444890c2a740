"""htsort, `tarmill sort`: all samples in the order of keys, perhaps reduced key by key, into new shards."""

from __future__ import annotations

import os
from typing import Any

from tarmill.cli.arguments import split_values
from tarmill.cli.htmapper import read_script
from tarmill.cli.htshuffle import run_reorder
from tarmill.cli.job_command import JobCommand
from tarmill.spec import ReorderOptions, SortSpec

HELP = """\
Write all samples of the IN shards, sorted over all of them, into the OUT shards; reduce those of equal key.

Samples of equal key stay in the order of the input. IN: as for htmapper; OUT: 'out-@0100.tar' for just 100
shards, 'out-@.tar' for as many as the cut gives.
"""

EPILOG = """\b
Examples: by name; best score first; how many samples each class has; the best of each; captions joined to images.
  $ htsort 'train-@0040.tar' 'sorted-@.tar'
  $ htsort 'train-@0040.tar' 'best-@.tar' -k meta.json:score:float:desc
  $ htsort 'train-@0040.tar' 'classes-@1.tar' -k cls:int --reduce count
  $ htsort 'train-@0040.tar' 'tops-@1.tar' --group-by cls -k meta.json:score:desc --reduce first
  $ htsort 'images-@100.tar::captions-@20.tar' 'pairs-@100.tar' --reduce merge --join inner
"""


def _read(values: dict[str, Any]) -> tuple[SortSpec, ReorderOptions]:
    options = ReorderOptions(**split_values(ReorderOptions, values))
    chosen: dict[str, Any] = {name: tuple(values.pop(name)) for name in ("keys", "group_by")}  # commas are theirs
    for name in ("script", "reduce_script"):
        if path := values.pop(name):
            chosen |= {name: read_script(path), f"{name}_name": os.path.basename(path)}
    return SortSpec(**split_values(SortSpec, values), **chosen), options


COMMAND = JobCommand("htsort", "sort", (SortSpec, ReorderOptions), _read, run_reorder, HELP, EPILOG)
make_command = COMMAND.make
main = COMMAND.main
