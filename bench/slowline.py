"""A line to a far server: what goes through arrives later, and no faster than the line carries. No byte is changed.

    with SlowLine(port, delay_s=0.010, bytes_per_s=50e6) as line:
        line.base                       # -> http://127.0.0.1:PORT

Each way has its delay, so a request and its answer take twice that; all connections share the rate of a way. It knows
nothing of HTTP and keeps connections as they are. It lives in a thread of its own and only moves and waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType
from typing import Self

PIECE_BYTES = 128 << 10
MOST_UNDER_WAY_BYTES = 2 << 20
"""Of one connection and way: more is left with its sender, as a window of TCP does."""


class _Way:
    """One direction of the line."""

    def __init__(self, delay_s: float, bytes_per_s: float) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def arrival_s(self, now_s: float, count: int) -> float:
        """Tell when bytes that are handed over now are at the other end; the line is taken for them until then."""
        self._free_s = max(self._free_s, now_s) + count / self._bytes_per_s
        return self._free_s + self._delay_s


class SlowLine:
    """Stands before a server on this machine until the block ends."""

    def __init__(self, server_port: int, delay_s: float, bytes_per_s: float) -> None:
        self._server_port = server_port
        self._there = _Way(delay_s, bytes_per_s)
        self._back = _Way(delay_s, bytes_per_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow line", daemon=True)
        self.base = ""

    def __enter__(self) -> Self:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=4 * PIECE_BYTES), self._loop
        ).result(10)
        self.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port, limit=4 * PIECE_BYTES)
        try:
            await asyncio.gather(_carry(client, to_server, self._there), _carry(server, to_client, self._back))
        except OSError:
            pass  # one side has gone: so does the other
        finally:
            to_client.close()
            to_server.close()


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, way: _Way) -> None:
    loop = asyncio.get_running_loop()
    under_way: deque[tuple[float, bytes]] = deque()
    changed = asyncio.Condition()

    def has_room() -> bool:
        return len(under_way) * PIECE_BYTES < MOST_UNDER_WAY_BYTES

    async def take() -> None:
        while True:
            piece = await source.read(PIECE_BYTES)
            async with changed:
                await changed.wait_for(has_room)
                under_way.append((way.arrival_s(loop.time(), len(piece)), piece))
                changed.notify_all()
            if not piece:
                return

    async def give() -> None:
        while True:
            async with changed:
                await changed.wait_for(lambda: under_way)
                due_s, piece = under_way.popleft()
                changed.notify_all()
            await asyncio.sleep(due_s - loop.time())
            if not piece:
                target.write_eof()
                return
            target.write(piece)
            await target.drain()

    await asyncio.gather(take(), give())
