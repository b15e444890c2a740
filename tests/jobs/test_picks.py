"""How samples are cut into chunks that are read at once."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tarmill.jobs.copy_writer import Chunk, Picks
from tarmill.jobs.span_sources import STREAM_BYTES

SIZES = st.sampled_from([512, 1024, 100_352, 300_032, 1 << 20, STREAM_BYTES, STREAM_BYTES + 512])


@given(st.lists(SIZES, max_size=60), st.integers(1, 700))
@example([512], 40_000)
def test_chunks_hold_each_sample_once_in_order_and_none_that_should_not_be_held(sizes: list[int], times: int) -> None:
    lengths = np.array(sizes * times, np.int64)
    starts, source = np.arange(len(lengths)) * 512, np.arange(len(lengths)) % 7
    found: list[tuple[int, int, int]] = []
    for chunk in Picks(source, starts, lengths, lengths, lengths, None).chunks():
        if isinstance(chunk, Chunk):
            assert max(chunk.lengths) <= STREAM_BYTES
            assert len(chunk.lengths) == 1 or sum(chunk.lengths) <= 1 << 20
            assert chunk.size_bytes == sum(chunk.lengths)
            found += zip(*chunk.ranges, strict=True)
        else:
            assert chunk[2] > STREAM_BYTES
            found.append(chunk)
    assert found == list(zip(source.tolist(), starts.tolist(), lengths.tolist(), strict=True))
