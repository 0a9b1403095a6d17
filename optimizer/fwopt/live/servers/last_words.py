"""What an engine's log says about its own end: the line that names the cause, and what kind of end it was."""

from __future__ import annotations

import re

from fwopt.live.servers.base import Failure

_LONGEST = 400
_PREFIX = re.compile(
    r"^(\(\w+ pid=\d+\) )?"  # vLLM: which of its processes
    r"((ERROR|CRITICAL|WARNING|INFO) \d\d-\d\d [\d:]{8} \[[^\]]*\] ?)?"  # vLLM's logger
    r"(\[\d{4}-\d\d-\d\d [\d:]{8}[^\]]*\] ?)?"  # SGLang's
)
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Refused|Exit|Interrupt)\b(?::.*)?$")
_FLAG = re.compile(r"^\S*: error: .+|^error: .+")
"""argparse (`vllm: error: ...`) and llama.cpp (`error: invalid argument: ...`)."""
_LLAMA = re.compile(r"^[\d.]+ E (\S+ +)?\S+: (?P<words>.+)$")
_CHAIN_LINES = 3
"""Error lines of llama.cpp at most so far apart belong together."""
_ECHO = re.compile(
    r"initialization failed|See root cause above|died with exit|EngineDeadError|EngineCore encountered"
    r"|Worker failed with error|exiting due to|: failed to load model|CancelledError|^KeyboardInterrupt|^SystemExit"
)
"""Says only that something else failed."""

_MEMORY = re.compile(
    r"out of memory|OutOfMemory|insufficient memory|not enough memory|cannot allocate memory|bad_alloc"
    r"|failed to allocate|unable to allocate"
    r"|no available memory for the cache|less than (requested|desired) .*memory|memory.* is less than"
    r"|larger than the (maximum|available) .*KV cache",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"error: |error while handling|invalid argument|unrecognized|ValidationError|Value error|OSError|NotFoundError"
    r"|No such (file|option)|GGUF file|failed to open|error loading model|couldn't bind|address already in use"
    r"|InputError|not supported",
    re.IGNORECASE,
)
_PORT = re.compile(r"address already in use|couldn't bind", re.IGNORECASE)


def last_words(log: str) -> str:
    """The line of the log that names the cause; its last line where none does.

    A traceback that ends in the failure of another process is passed over: the cause stands further up. Of llama.cpp's
    error lines that follow each other the first counts: the rest say which of its parts failed for that.
    """
    lines = [_PREFIX.sub("", line).rstrip() for line in log.splitlines()]
    found: str | None = None
    in_chain = 0
    for i, line in enumerate(lines):
        words = _cause(lines, i, line)
        if words is not None and not (in_chain and _LLAMA.match(line)):
            found = words
        in_chain = _CHAIN_LINES if _LLAMA.match(line) else max(0, in_chain - 1)
    if found is None:
        found = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 3]}..."


def failure(words: str, *, killed_for_memory: bool = False) -> Failure:
    """The kind of end of a server that never was ready."""
    if killed_for_memory or _MEMORY.search(words):
        return "out of memory"
    return "refused" if _REFUSED.search(words) else "crashed"


def says_port_taken(log: str) -> bool:
    return bool(_PORT.search(log))


def _cause(lines: list[str], i: int, line: str) -> str | None:
    if _ECHO.search(line):
        return None
    if llama := _LLAMA.match(line):
        return llama["words"]
    if _FLAG.match(line):
        return line
    if not _RAISED.match(line):
        return None
    following = lines[i + 1].strip() if i + 1 < len(lines) else ""
    if "validation error" in line and following:  # pydantic says what was wrong on the next line
        return f"{line.rpartition('.')[2]}: {following}"
    return line
