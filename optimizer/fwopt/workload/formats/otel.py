"""OpenTelemetry spans of model calls: OTLP JSON lines, one `TracesData` object a line (OTLP file exporter).

Read are inference spans of the GenAI semantic conventions (`gen_ai.operation.name` chat, text_completion or
generate_content; `gen_ai.usage.input_tokens`, `.output_tokens`) and vLLM's own `llm_request` spans
(`gen_ai.usage.prompt_tokens`, `.completion_tokens`). Agent, tool and embedding spans are counted, not read:
agents repeat the token counts of the calls beneath them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fwopt.errors import TraceError
from fwopt.workload.builder import Builder
from fwopt.workload.clock import NANOSECONDS
from fwopt.workload.formats.base import JsonRows, Options, TraceFormat
from fwopt.workload.source import Head

_CALLS = frozenset({"chat", "text_completion", "generate_content"})
_CLIENT = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
_ANSWERS = ("gen_ai.request.choice.count", "gen_ai.request.n")
_VLLM = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens")


def _accepts(head: Head) -> bool:
    return any("resourceSpans" in row for row in head.objects)


class OtelRows(JsonRows):
    known = frozenset({"resourceSpans"})

    def __init__(self, file: str, head: Head, options: Options) -> None:
        super().__init__(Builder(file, {"arrival_s": "startTimeUnixNano"}, ticks_per_s=NANOSECONDS, sort=True))
        self._kind: tuple[str, str] | None = None
        self._other = 0

    def row(self, line: bytes) -> None:
        """A line holds many spans; a bad one spoils only itself."""
        for span in self._spans(self.parse(line)):
            try:
                self._span(span)
            except TraceError as error:
                if self.builder.skip is None:
                    raise
                self.builder.skip(error)

    def _spans(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for resource in self._list(row, "resourceSpans"):
            for scope in self._list(resource, "scopeSpans"):
                yield from self._list(scope, "spans")

    def _list(self, holder: dict[str, Any], field: str) -> list[dict[str, Any]]:
        found = holder.get(field, [])
        if type(found) is not list or any(type(entry) is not dict for entry in found):
            self.builder.bad(field, "must be a list of objects", type(found).__name__)
        return found

    def _span(self, span: dict[str, Any]) -> None:
        values = {str(pair.get("key")): pair.get("value") for pair in self._list(span, "attributes")}
        kind = _VLLM if _VLLM[0] in values else _CLIENT
        operation = _text(values.get("gen_ai.operation.name"))
        if operation not in _CALLS and (kind is _CLIENT or operation is not None):  # vLLM's name no operation
            self._other += 1
            return
        for field in kind:
            if field not in values:
                self.builder.bad(field, f"must be recorded on a span of operation {operation!r}", "absent")
        if self._kind not in (None, kind):
            rule = "must come from one instrumentation: client and vLLM spans record the same request twice"
            self.builder.bad("gen_ai.usage", rule, kind[0])
        for field in _ANSWERS:
            answers = self._whole(field, values.get(field))
            if answers not in (None, 1):
                self.builder.bad(field, "must be 1: a request that samples several answers is not modelled", answers)
        prompt, output = (self._whole(field, values[field]) for field in kind)
        limit = self._whole("gen_ai.request.max_tokens", values.get("gen_ai.request.max_tokens"))
        self.builder.add(
            self._whole("startTimeUnixNano", {"intValue": span.get("startTimeUnixNano")}),
            prompt,
            output,
            max_tokens=limit,
            session=_text(values.get("gen_ai.conversation.id")),
            model=_text(values.get("gen_ai.request.model")) or _text(values.get("gen_ai.response.model")),
        )
        self._kind = kind

    def _whole(self, field: str, value: Any) -> int | None:
        """An OTLP integer: JSON writes 64-bit integers as decimal strings; plain numbers are legal too."""
        if value is None:
            return None
        found = value.get("intValue") if isinstance(value, dict) else None
        if type(found) is str and found.isascii() and found.isdigit() and len(found) < 20:
            found = int(found)
        if type(found) is not int:
            self.builder.bad(field, "must be an intValue", "another type" if found is None else found)
        return found

    def finish(self) -> tuple[str, ...]:
        notes = list(super().finish())
        if self._other:
            notes.append(f"spans that are no model calls (agents, tools, embeddings, others), not read: {self._other}")
        if self.builder.out_of_order:
            notes.append(
                f"sorted by start time; spans that started before one written earlier: {self.builder.out_of_order}"
            )
        return tuple(notes)


def _text(value: Any) -> str | None:
    found = value.get("stringValue") if isinstance(value, dict) else None
    return found if type(found) is str and found else None


FORMAT = TraceFormat("OpenTelemetry GenAI spans, OTLP JSON lines (resourceSpans)", _accepts, OtelRows)
