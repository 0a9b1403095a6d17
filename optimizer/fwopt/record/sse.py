"""Server-sent events out of a byte stream that is cut anywhere (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class Events:
    """Bytes in, whole events out; what is left of an event waits for the rest."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(the event's bytes as they came, its data); data is empty where an event carries none."""
        if not self._rest and chunk.endswith(b"\n\n") and chunk.startswith(b"data: ") and chunk.count(b"\n") == 2:
            yield chunk, chunk[6:-2]  # one whole event: the usual case
            return
        held = self._rest + chunk if self._rest else chunk
        start = 0
        for end in _END.finditer(held):
            raw = held[start : end.end()]
            start = end.end()
            yield raw, _data(raw)
        self._rest = held[start:]

    @property
    def rest(self) -> bytes:
        """What came after the last whole event."""
        return self._rest


def _data(event: bytes) -> bytes:
    parts = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return parts[0] if len(parts) == 1 else b"\n".join(parts)
