"""Written times to integer nanoseconds since 1970, exactly: floats would blur 100 ns ticks."""

from __future__ import annotations

import re
from datetime import date

NANOSECONDS = 1_000_000_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?\s*(?:(Z|UTC)|([+-])(\d\d)(?::?(\d\d))?)?", re.ASCII
)


class Clock:
    """Reads ISO 8601 times; without an offset they count as UTC. Remembers the last date's day number."""

    def __init__(self) -> None:
        self._date, self._day = "", 0

    def nanoseconds(self, text: str) -> int | None:
        """None when the text is no time."""
        found = _STAMP.fullmatch(text.strip())
        if found is None:
            return None
        day, hour, minute, second, fraction, _, sign, ahead_h, ahead_m = found.groups()
        if day != self._date:
            try:
                self._date, self._day = day, date.fromisoformat(day).toordinal() - _EPOCH_DAY
            except ValueError:
                return None
        if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
            return None
        seconds = self._day * 86400 + int(hour) * 3600 + int(minute) * 60 + int(second)
        if sign:
            seconds -= (1 if sign == "+" else -1) * (int(ahead_h) * 3600 + int(ahead_m or 0) * 60)
        return seconds * NANOSECONDS + (int(fraction.ljust(9, "0")) if fraction else 0)
