"""The URLs of notifiers: what is wrong with one, and what may be shown.  No message holds a part of it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_EXAMPLE = "https://ops.example.com/hook"


def problem_of(text: str, *, base: bool = False) -> str | None:
    """What is wrong with a URL and the mend, ``None`` if nothing is.  ``base``: a path is put behind it."""
    url = text.strip()
    if not url:
        return f"a URL is needed, for example {_EXAMPLE}"
    if not url.startswith(("http://", "https://")):
        return f"the URL begins with http:// or https://, for example {_EXAMPLE}"
    if re.search(r"[\s\x00-\x1f\x7f\"<>\\^`{|}]", url) or not url.isascii():
        return "a URL has no spaces, quotes, brackets or other letters than ASCII: percent-encode them"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "a port is a number from 1 to 65535, and an IPv6 address stands in brackets"
    if "@" in parts.netloc:
        return "no user and password before the host: sign by secret_file, or give a token by token_file"
    if port == 0 or not _HOST.fullmatch(parts.netloc):
        return f"host and port are needed, for example {_EXAMPLE}"
    if parts.fragment or url.endswith("#"):
        return "a URL that is posted to has no '#': leave that part out"
    if base and (parts.query or url.endswith("?")):
        return "a base URL has no '?': leave that part out"
    return None


def host_of(text: str) -> str:
    """Host and port: what may be shown."""
    try:
        return urlsplit(text.strip()).netloc.rpartition("@")[2] or "?"
    except ValueError:
        return "?"


def shown_url(text: str) -> str:
    """Scheme, host and port; what stands behind them as ``***``."""
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        return "***"
    rest = "/***" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{host_of(text)}{rest}"
