"""Get anonymous bearer tokens, as a registry's WWW-Authenticate header asks for.

A token never appears in an error or a log.
"""

import json
import re
import time
from collections.abc import Callable

from agent.errors import ImageError
from agent.images.transport import Transport, UnansweredError, name_of, parse_url

DEFAULT_LIFE_S = 60.0
MARGIN_S = 5.0
MAX_TOKEN_BYTES = 1 << 20

_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Split a WWW-Authenticate header into its scheme, in small letters, and its parameters."""
    scheme, _, rest = header.strip().partition(" ")
    parameters = {
        match[1].lower(): match[2].replace('\\"', '"') if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(rest)
    }
    return scheme.lower(), parameters


class Tokens:
    """Tokens by registry and repository, for as long as they live."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._held: dict[tuple[str, str], tuple[str, float]] = {}

    def header(self, registry: str, repository: str) -> dict[str, str]:
        """Return the header that carries our token, or nothing while we have none."""
        token, valid_until = self._held.get((registry, repository), ("", 0.0))
        if self._monotonic() >= valid_until:
            return {}
        return {"Authorization": f"Bearer {token}"}

    async def get(
        self, transport: Transport, registry: str, repository: str, challenge: str
    ) -> None:
        """Fetch the token that the challenge asks for, and hold it.

        Raises:
            ImageError: the registry wants something else than an anonymous token.
        """
        scheme, parameters = parse_challenge(challenge)
        if scheme != "bearer" or not parameters.get("realm"):
            raise ImageError(f"registry {registry} wants a user and a password, and has none of us")
        realm = parse_url(parameters["realm"], registry)
        if not transport.may_use(realm):
            raise ImageError(f"registry {registry} wants a token from where there is no TLS")
        query = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        query.setdefault("scope", f"repository:{repository}:pull")
        async with transport.request("GET", realm.update_query(query), {}) as response:
            if response.status != 200:
                answer = f"{response.status} {response.reason or ''}".rstrip()
                raise UnansweredError(f"registry {registry} gives no token: {answer}")
            content = await response.content.read(MAX_TOKEN_BYTES)
        token, life_s = _token(content, name_of(realm))
        valid_until = self._monotonic() + life_s - MARGIN_S
        self._held[registry, repository] = (token, valid_until)


def _token(content: bytes, authority: str) -> tuple[str, float]:
    try:
        document = json.loads(content)
        token = document.get("token") or document.get("access_token")
        life_s = float(document.get("expires_in") or DEFAULT_LIFE_S)
    except (ValueError, AttributeError, TypeError, RecursionError):
        # Not chained: the document may hold the token.
        raise ImageError(f"{authority} answers with something that is no token") from None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise ImageError(f"{authority} answers without a token")
    return token, max(life_s, MARGIN_S + 1.0)
