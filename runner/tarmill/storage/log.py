"""Where stores tell what they try again: lines of text on standard error, or JSON lines like those of the command."""

from __future__ import annotations

import json
import logging
import os

FORMAT_VARIABLE = "TARMILL_LOG_FORMAT"
"""Set to "json" by commands with --log-format json, for the processes that they start too."""


class JsonLines(logging.Formatter):
    """One JSON object for each record: event, time_s, level, logger, message, traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        facts = {"event": "log", "time_s": round(record.created, 3), "level": record.levelname.lower()}
        facts |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts)


def log() -> logging.Logger:
    """Give the logger of all stores."""
    logger = logging.getLogger("tarmill.storage")
    if os.environ.get(FORMAT_VARIABLE) == "json" and not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
    return logger
