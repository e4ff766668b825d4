"""The identity of a row in plain Python, as tests of every domain expect it."""

import hashlib
from collections.abc import Sequence


def expected_identity(texts: Sequence[str | None]) -> str:
    """First 32 hex digits of SHA-256 over texts; lengths follow where a separator is in one."""
    parts = ["\x1e" if text is None else text for text in texts]
    if any(mark in text for text in texts if text is not None for mark in "\x1e\x1f"):
        parts += ["" if text is None else str(len(text)) for text in texts]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]
