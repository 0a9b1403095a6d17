"""The secret under which prompts are hashed: without it nobody can test a guess at a prompt against a recording."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from fwopt.errors import InputError

_SECRET_BYTES = 32


class PrefixKey:
    """Keyed BLAKE2b (RFC 7693, section 2.9: a MAC as it stands), one independent function a purpose."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def random(cls) -> PrefixKey:
        """Forgotten with the process: hashes of two runs then have nothing in common."""
        return cls(os.urandom(_SECRET_BYTES))

    @classmethod
    def from_file(cls, path: Path) -> PrefixKey:
        """64 hexadecimal digits, readable by the owner alone; made when missing."""
        try:
            if not path.exists():
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(os.urandom(_SECRET_BYTES).hex() + "\n")
            if path.stat().st_mode & 0o077:
                raise InputError(f"--key-file: must be readable by its owner alone; run: chmod 600 {path}")
            secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except OSError as error:
            raise InputError(f"--key-file {path}: cannot be used: {error.strerror or error}") from None
        except ValueError:
            secret = b""
        if len(secret) != _SECRET_BYTES:
            raise InputError(
                f"--key-file {path}: must hold {2 * _SECRET_BYTES} hexadecimal digits; delete it for a new one"
            )
        return cls(secret)

    def blocks(self) -> blake2b:
        """Hasher of a prompt's blocks; the digest so far stands for the whole prefix."""
        return blake2b(digest_size=8, key=self._secret, person=b"prefix block")

    def message(self, before: bytes, message: bytes) -> bytes:
        """A conversation's state after one more message."""
        return blake2b(before + message, digest_size=16, key=self._secret, person=b"conversation").digest()
