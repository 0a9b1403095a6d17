"""Requests as OpenAI's API words them, and what this server makes of them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fwopt.engine.sequence import Sampling

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "tools": (None, []),
    "response_format": (None, {"type": "text"}),
    "use_beam_search": (None, False),
}
"""What would change the output and is not implemented: accepted only with a value that changes nothing."""


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(self, message: str, status: int = 400, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.field, self.code = message, status, field, code

    def body(self) -> dict[str, Any]:
        kind = {404: "NotFoundError", 503: "ServiceUnavailableError"}.get(self.status, "BadRequestError")
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code or self.status}}


class StreamOptions(BaseModel):
    include_usage: bool = False


class _Common(BaseModel):
    """Fields of both APIs. Unknown ones are ignored, as other servers do."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [s for s in stops if s]

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def refuse_unsupported(self) -> None:
        for name, value in (self.model_extra or {}).items():
            if name in _NEUTRAL and value not in _NEUTRAL[name]:
                raise RequestError(f"{name} is not implemented by this server, got {value!r}"[:200], field=name)

    def sampling(self, max_tokens: int, end_ids: frozenset[int]) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop_ids=(frozenset() if self.ignore_eos else end_ids) | frozenset(self.stop_token_ids or ()),
        )


class CompletionRequest(_Common):
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16

    def single_prompt(self) -> str | list[int]:
        """The one prompt; a list of several is refused."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
            if len(prompt) > 1:
                raise RequestError(f"one prompt a request, got {len(prompt)}", field="prompt")
            return prompt[0]
        return prompt  # type: ignore[return-value]


class ChatRequest(_Common):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


_AnyRequest = TypeVar("_AnyRequest", bound=_Common)


def parse(kind: type[_AnyRequest], body: bytes) -> _AnyRequest:
    """A request of this kind; what is wrong with it, in one line."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise RequestError(f"{where}: {first['msg']}, got {first['input']!r}"[:300], field=where) from None
    request.refuse_unsupported()
    return request
