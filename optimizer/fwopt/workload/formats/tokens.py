"""Token counts and ids from a model's own files, for logs whose lines lack `usage`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fwopt.errors import InputError
from fwopt.workload.builder import Builder


class ChatTokenizer:
    """`tokenizer.json` and the chat template of a model folder, applied as an OpenAI-compatible server does."""

    def __init__(self, folder: Path, option: str = "--model") -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError(
                f"{option} {folder}: must be a folder with tokenizer.json; download the model's tokenizer files"
            )
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise InputError("counting tokens needs the tokenizers package; pip install 'fwopt[tokenizer]'") from None
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises bare Exception
            raise InputError(f"{file}: must be a Hugging Face tokenizer.json: {error}") from None
        self._special, self._template = _template(folder)

    def prompt(self, request: dict[str, Any], builder: Builder) -> list[int]:
        """Token ids of the whole prompt, special tokens and generation prompt included."""
        if request.get("messages") is not None:
            return self._encode(self._render(request, builder), special=False)
        prompt = request["prompt"]
        return list(prompt) if isinstance(prompt, list) else self._encode(prompt, special=True)

    def plain(self, text: str) -> list[int]:
        """Token ids of a text as it stands."""
        return self._encode(text, special=False)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        """As a batch of one: only batches are encoded without the interpreter lock."""
        return list(self._tokenizer.encode_batch([text], add_special_tokens=special)[0].ids)

    def _render(self, request: dict[str, Any], builder: Builder) -> str:
        import jinja2

        if self._template is None:
            builder.bad(
                "messages",
                "needs a chat template beside tokenizer.json (chat_template.jinja or tokenizer_config.json)",
                "none",
            )
        try:
            text: str = self._template.render(
                messages=[_flat(message) for message in request["messages"]],
                tools=request.get("tools"),
                add_generation_prompt=True,
                **self._special,
                **(request.get("chat_template_kwargs") or {}),
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            builder.bad("messages", "must suit the model's chat template", type(error).__name__)
        return text

    def output(self, response: dict[str, Any], builder: Builder) -> int:
        """Tokens of the first choice, with the end token that a natural stop produced."""
        choices = response.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            builder.bad("choices", "must hold the answer when usage is absent", "absent")
        message = choice.get("message")
        parts = [choice.get("text")]
        if isinstance(message, dict):
            calls = message.get("tool_calls")
            parts = [message.get("reasoning_content"), message.get("content"), json.dumps(calls) if calls else None]
        text = "".join(part for part in parts if isinstance(part, str))
        ended = choice.get("finish_reason") in ("stop", "tool_calls")
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) + ended


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """Content given as a list of texts, joined as servers join it for templates that expect one text."""
    content = message.get("content")
    if not isinstance(content, list) or not all(
        isinstance(p, dict) and isinstance(p.get("text"), str) for p in content
    ):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _template(folder: Path) -> tuple[dict[str, str], Any]:
    """(special tokens by name, compiled chat template or None)."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    config: dict[str, Any] = {}
    file = folder / "tokenizer_config.json"
    if file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: must be JSON: {error}") from None
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    separate = folder / "chat_template.jinja"
    source = separate.read_text(encoding="utf-8") if separate.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        return special, None

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    return special, environment.from_string(source)
