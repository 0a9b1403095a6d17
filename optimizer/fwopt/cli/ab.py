"""`fwopt ab`: two servers, latency and quality together."""

from __future__ import annotations


def ab() -> None:
    """To come."""
