"""Asking the admin listener of a running Legato, for the commands that do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from proxy.units import parse_duration

#: Where it listens unless told otherwise.
ADMIN: Final = "http://127.0.0.1:9464"
#: The flags of every command that asks it.
AdminUrl = Annotated[
    str, typer.Option(metavar="URL", help="The admin listener, as admin.listen of the configuration.")
]
TokenFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The file of the admin token, where one is configured."),
]
#: Exit status of a command that got no answer, or a refusal.
FAILED: Final = 1
#: Mends that name a route, as a command.
_IN_WORDS: Final = {
    "GET /api/experiments lists them": "`legato experiment status` lists them",
    "GET / lists what there is": "does the same version of Legato run there?",
}
_TIMEOUT_S: Final = 20.0
_BODY_MAX: Final = 64 * 1024 * 1024


class Unanswered(Exception):
    """There is no answer to go by; the text says why and how to mend it.

    ``status``: what was answered instead; ``None``: nobody answered, or it was no Legato.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(plain(text))
        self.status = status


class Admin(NamedTuple):
    """An admin listener: its URL and what it is shown."""

    base: str
    token: str | None

    def get(self, path: str, query: Mapping[str, str] | None = None, timeout_s: float = _TIMEOUT_S) -> Any:
        """The JSON of an answer; raises ``Unanswered``."""
        asked = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        return self._asked(asked, None, "GET", timeout_s)

    def send(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """Ask for a change, in JSON; raises ``Unanswered``."""
        return self._asked(path, json.dumps(body).encode(), method, _TIMEOUT_S)

    def _asked(self, path: str, body: bytes | None, method: str, timeout_s: float) -> Any:
        try:
            found = ask(
                self.base + path,
                self.token,
                timeout_s=timeout_s,
                most_bytes=_BODY_MAX,
                method=method,
                body=body,
            )
        except urllib.error.HTTPError as error:
            raise Unanswered(_refused(self.base, error), error.code) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise Unanswered(
                f"the admin listener at {self.base} cannot be reached: {why}\n"
                "  is `legato serve` running there? --admin URL says where it listens (admin.listen)"
            ) from None
        try:
            return json.loads(found)
        except ValueError:
            raise Unanswered(
                f"what answers at {self.base} is no admin listener of Legato: give --admin URL"
            ) from None


def admin_of(admin: str, token_file: str | None) -> Admin:
    """From the flags ``--admin`` and ``--token-file``; raises ``BadParameter`` for what they cannot be."""
    return Admin(_base(admin), _token(token_file))


def check_window(text: str) -> None:
    """Raises ``BadParameter`` where ``--window`` is no stretch of time."""
    try:
        parse_duration(text)
    except ValueError as error:
        bare = text.strip().isdecimal()
        why = f"{text!r}: a unit is needed, for example {text.strip()}m" if bare else str(error)
        raise typer.BadParameter(why, param_hint="--window") from error


def another_version(base: str) -> Unanswered:
    """The answer lacks what this version's has."""
    return Unanswered(
        f"what answers at {base} is no admin listener of this version of Legato\n"
        "  is --admin right, and does the same version run there?"
    )


def refuse(text: object, status: int = FAILED) -> typer.Exit:
    """Say on stderr why there is nothing more to come: ``raise refuse(...)``."""
    typer.echo(f"legato: {plain(str(text))}", err=True)
    return typer.Exit(status)


def plain(text: str) -> str:
    """Text from elsewhere, fit for a terminal: what cannot be printed becomes a question mark."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def ask(
    url: str,
    token: str | None,
    *,
    timeout_s: float,
    most_bytes: int,
    method: str = "GET",
    body: bytes | None = None,
) -> bytes:
    """The answer's body.  Raises what ``urllib`` raises; an answer from 300 on is an ``HTTPError``.

    Never by the proxy of ``http_proxy``, since the admin listener is near; and a redirect is not followed: a
    token goes to the host that was named, and nowhere else.  ``body`` is JSON.
    """
    request = urllib.request.Request(url, data=body, method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    with opener.open(request, timeout=timeout_s) as answer:
        found: bytes = answer.read(most_bytes)
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer, not an order."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _base(admin: str) -> str:
    url = admin if "://" in admin else f"http://{admin}"
    try:
        parts = urllib.parse.urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # a port that is none
        fits = False
    if not fits or parts.query or parts.fragment or parts.username:
        mend = f"give a URL such as {ADMIN}"
        raise typer.BadParameter(
            f"{admin!r} is not the URL of an admin listener: {mend}", param_hint="--admin"
        )
    return url.rstrip("/")


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise typer.BadParameter(f"{path}: {why}", param_hint="--token-file") from error
    if not token or not token.isprintable():
        raise typer.BadParameter(f"{path}: holds no token, or more than a line", param_hint="--token-file")
    return token


def _refused(base: str, error: urllib.error.HTTPError) -> str:
    try:
        said = json.loads(error.read(_BODY_MAX))["error"]
        told = f"{said['message']}\n  {_IN_WORDS.get(said['mend'], said['mend'])}"
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
        told = "what answers there is no admin listener of Legato: give --admin URL"
    flag = "\n  the flag is --token-file FILE" if error.code in (401, 403) else ""
    return f"{base} answered {error.code}: {told}{flag}"
