"""Asking the admin listener of a running Legato, for the commands that do."""

from __future__ import annotations

import urllib.request
from typing import Any

#: Where it listens unless told otherwise.
ADMIN = "http://127.0.0.1:9464"


def ask(url: str, token: str | None, *, timeout_s: float, most_bytes: int) -> bytes:
    """The answer's body.  Raises what ``urllib`` raises; an answer from 300 on is an ``HTTPError``.

    Never by the proxy of ``http_proxy``, since the admin listener is near; and a redirect is not followed: a
    token goes to the host that was named, and nowhere else.
    """
    request = urllib.request.Request(url)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    with opener.open(request, timeout=timeout_s) as answer:
        body: bytes = answer.read(most_bytes)
    return body


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer, not an order."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""
