from __future__ import annotations

from collections.abc import Iterator

import pytest

from tarmill import storage
from tarmill.storage import mem


@pytest.fixture(autouse=True)
def own_storage() -> Iterator[None]:
    """Each test begins with an empty memory store and leaves the settings as they were."""
    before = storage.current_settings()
    yield
    storage.configure(before)
    mem.clear()
