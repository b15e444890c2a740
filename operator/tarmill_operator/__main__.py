"""`python -m tarmill_operator`: run the operator; see `config.py` for its settings."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys

import uvloop

from tarmill.errors import UsageError
from tarmill_operator.config import from_environment
from tarmill_operator.connection import Connection
from tarmill_operator.lease import Lost
from tarmill_operator.logs import set_up_logging
from tarmill_operator.process import Process

log = logging.getLogger("tarmill_operator")


def main() -> int:
    """Run the operator until it is told to stop; the exit code is 1 when another one leads, 2 for bad settings."""
    try:
        config = from_environment(os.environ)
        set_up_logging(config.log_format, config.log_level)
        connection = Connection()
    except UsageError as error:
        print(f"tarmill_operator: {error}", file=sys.stderr)
        return 2
    # what watches tell is trees of dicts without circles: looking for some each 700 objects costs more than it finds
    gc.set_threshold(50_000, 20, 20)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Process(config, connection).run())
    except Lost as lost:
        log.error("stopped: %s", lost)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
