"""The script of the rows of a slow line: some work for each sample, about as long as the line needs for it."""

import zlib


def process_sample(record):
    for body in record.values():
        if isinstance(body, bytes):
            zlib.compress(body[: len(body) // 2], 1)
    return record
