"""An endpoint completed by what its server says of itself."""

from __future__ import annotations

from dataclasses import replace

from fwopt.errors import InputError
from fwopt.live.endpoint import Endpoint
from fwopt.live.servers.identity import HttpError, Identity, identify

_TIMEOUT_S = 10.0
_UNKNOWN = Identity((), None, None, None)


def served(endpoint: Endpoint) -> Identity:
    """What /v1/models says; a server without such a page serves something unknown, one that does not answer is an
    error."""
    try:
        return identify(endpoint.url, timeout_s=_TIMEOUT_S, api_key=endpoint.api_key)
    except HttpError as error:
        if error.status in (401, 403):
            raise InputError(
                f"{endpoint.url}: answers HTTP {error.status}; name the variable that holds its key, --api-key-env"
            ) from None
        return _UNKNOWN
    except OSError as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or "no answer"
        raise InputError(f"{endpoint.url}: no server answers ({reason}); start it, or name another --url") from None
    except ValueError:
        return _UNKNOWN


def complete(endpoint: Endpoint, *, named: bool) -> Endpoint:
    """The endpoint with what the server says about itself; `named`: the model was given. Given facts stay."""
    found = served(endpoint)
    model = endpoint.model
    if not named:
        if len(found.models) != 1:
            shown = ", ".join(found.models) or "none"
            raise InputError(f"{endpoint.url} serves several models or does not say which ({shown}): name it, --model")
        model = found.models[0]
    return replace(
        endpoint,
        model=model,
        engine=endpoint.engine or found.engine,
        max_context_tokens=endpoint.max_context_tokens or found.max_context_tokens,
    )
