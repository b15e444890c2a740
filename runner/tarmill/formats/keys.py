"""Key functions (placeholder until the full set is there)."""

from __future__ import annotations

from collections.abc import Callable


def key_function(name: str) -> Callable[[str], tuple[str, str] | None]:
    """Give the key function of that name."""

    def base_plus_ext(member: str) -> tuple[str, str] | None:
        slash = member.rfind("/") + 1
        dot = member.find(".", slash)
        if dot < 0 or (dot == slash and member.find(".", dot + 1) < 0):
            return None
        if dot == slash:
            dot = member.find(".", dot + 1)
        return member[:dot], member[dot + 1 :]

    return base_plus_ext
