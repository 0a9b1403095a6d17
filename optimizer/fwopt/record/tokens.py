"""Token ids of prompts, with the served model's own tokenizer, beside the traffic."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fwopt.record.asked import Asked
from fwopt.workload.builder import Builder
from fwopt.workload.formats.tokens import ChatTokenizer


class PromptTokens:
    """One thread: the tokenizer works without the interpreter lock."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = ChatTokenizer(path.parent if path.name == "tokenizer.json" else path, "--tokenizer")
        self._thread = ThreadPoolExecutor(1, "tokenizer")
        self._errors = Builder("request", {})

    async def ids(self, asked: Asked) -> list[int]:
        """Of the whole prompt, chat template included; raises TraceError where the template refuses the messages."""
        if asked.tokens is not None:
            return asked.tokens
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ids, asked)

    def _ids(self, asked: Asked) -> list[int]:
        request = {
            "messages": asked.messages,
            "prompt": asked.text,
            "tools": asked.offered or None,
            "chat_template_kwargs": asked.template,
        }
        return self._tokenizer.prompt(request, self._errors)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
