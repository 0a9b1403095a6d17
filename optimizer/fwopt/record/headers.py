"""Headers that end at a proxy (RFC 9110, section 7.6.1), and those that go on."""

from __future__ import annotations

from collections.abc import Iterable

from multidict import CIMultiDict

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
_OURS = frozenset({"host", "expect"})
"""Made anew for the next hop."""


def to_upstream(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    return _passed(headers, _HOP_BY_HOP | _OURS)


def to_client(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    return _passed(headers, _HOP_BY_HOP)


def _passed(headers: Iterable[tuple[str, str]], dropped: frozenset[str]) -> CIMultiDict[str]:
    pairs = list(headers)
    named = {name.strip().lower() for key, value in pairs if key.lower() == "connection" for name in value.split(",")}
    return CIMultiDict((key, value) for key, value in pairs if key.lower() not in dropped and key.lower() not in named)
