"""Content codings of HTTP bodies, read along without touching what is passed on."""

from __future__ import annotations

import zlib
from typing import Any, Protocol


class Decoder(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


class _Plain:
    def decompress(self, data: bytes) -> bytes:
        return data


READABLE = ("gzip", "deflate", "zstd", "identity")


def decoder(coding: str | None) -> Decoder | None:
    """For one body; None for a coding that cannot be read here."""
    match (coding or "identity").strip().lower():
        case "identity" | "":
            return _Plain()
        case "gzip" | "x-gzip":
            return zlib.decompressobj(31)
        case "deflate":
            return zlib.decompressobj()
        case "zstd":
            import zstandard

            made: Any = zstandard.ZstdDecompressor().decompressobj()
            return made  # type: ignore[no-any-return]
    return None


def decoded(body: bytes, coding: str | None, limit_bytes: int) -> bytes | None:
    """A whole body; None when it cannot be read or unpacks to more than the limit."""
    if (coding or "identity").strip().lower() in ("identity", ""):
        return body
    reader, parts, size = decoder(coding), [], 0
    if reader is None:
        return None
    try:
        for start in range(0, len(body), 1 << 14):  # small steps: a decompression bomb meets the limit first
            part = reader.decompress(body[start : start + (1 << 14)])
            size += len(part)
            if size > limit_bytes:
                return None
            parts.append(part)
    except Exception as error:
        if _is_damage(error):
            return None
        raise
    return b"".join(parts)


def _is_damage(error: Exception) -> bool:
    import zstandard

    return isinstance(error, zlib.error | zstandard.ZstdError)


def readable_only(accepted: str) -> str:
    """An Accept-Encoding header without the codings that could not be read here."""
    kept = [part for part in accepted.split(",") if part.split(";")[0].strip().lower() in READABLE]
    return ",".join(kept).strip() or "identity"
