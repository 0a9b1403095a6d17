"""A server that somebody else started, at any URL. It is asked and never stopped."""

from __future__ import annotations

from urllib.parse import urlsplit

from fwopt.errors import InputError
from fwopt.live.endpoint import Endpoint
from fwopt.live.servers.base import Failure, ServerError
from fwopt.live.servers.identity import HttpError, Identity, fetch, identify


class AttachedServer:
    """Satisfies `Server`: `stop` leaves it as it was found."""

    def __init__(
        self, url: str, *, model: str | None = None, api_key: str | None = None, answer_timeout_s: float = 30.0
    ) -> None:
        self.url = _base(url)
        self.identity: Identity | None = None
        self.endpoint: Endpoint | None = None
        self._model, self._api_key, self._timeout_s = model, api_key, answer_timeout_s

    def start(self) -> Endpoint:
        """Ask what it serves; nothing is started."""
        try:
            self.identity = found = identify(self.url, timeout_s=self._timeout_s, api_key=self._api_key)
        except (HttpError, OSError, ValueError) as error:
            raise self._error(error, "never ready") from None
        if self._model is None and len(found.models) > 1:
            raise InputError(f"{self.url} serves {', '.join(found.models)}; name one of them")
        model = self._model or found.models[0]
        if model not in found.models:
            raise InputError(f"{self.url} does not serve '{model}'; it serves {', '.join(found.models)}")
        self.endpoint = Endpoint(
            url=self.url,
            model=model,
            engine=found.engine,
            api_key=self._api_key,
            max_context_tokens=found.max_context_tokens,
        )
        return self.endpoint

    def check(self, *, generate: bool = False) -> None:
        endpoint = self.endpoint or self.start()
        try:
            fetch(f"{self.url}/v1/models", timeout_s=self._timeout_s, api_key=self._api_key)
            if generate:
                body = {"model": endpoint.model, "prompt": "Hello", "max_tokens": 1}
                fetch(f"{self.url}/v1/completions", body=body, timeout_s=self._timeout_s, api_key=self._api_key)
        except (HttpError, OSError) as error:
            raise self._error(error, "gone") from None

    def stop(self) -> None:
        """Nothing: it was not started here."""

    def __enter__(self) -> Endpoint:
        return self.start()

    def __exit__(self, *details: object) -> None:
        self.stop()

    def _error(self, error: Exception, otherwise: Failure) -> ServerError:
        if isinstance(error, TimeoutError):
            return ServerError(self.url, "hung", f"no answer within {self._timeout_s:g} s", None)
        if isinstance(error, HttpError) and error.status in (401, 403):
            return ServerError(self.url, "refused", f"it wants an API key ({error})", None)
        if isinstance(error, HttpError | ValueError):
            return ServerError(self.url, "refused", f"it does not answer as an OpenAI-compatible server: {error}", None)
        return ServerError(self.url, otherwise, str(getattr(error, "reason", error)), None)


def _base(url: str) -> str:
    """Scheme, host and port: what comes before `/v1`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"server URL: must be like http://127.0.0.1:8000, got '{url}'")
    if parts.path.rstrip("/") not in ("", "/v1") or parts.query or parts.fragment:
        raise InputError(f"server URL: must end before or at /v1, got '{url}'")
    return f"{parts.scheme}://{parts.netloc}"
