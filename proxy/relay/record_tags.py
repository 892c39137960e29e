"""What a record takes from request headers, by configuration, and whose headers are believed."""

from __future__ import annotations

import ipaddress
from typing import Final

from proxy.link import Table
from proxy.relay.headers import Fields

_VALUE_LIMIT: Final = 200


class Tags:
    """Compiled ``record_headers`` and ``trusted_proxies`` of one table."""

    def __init__(self, table: Table) -> None:
        self._names = {header.lower().encode(): tag for tag, header in table.record_headers.items()}
        self._networks = [ipaddress.ip_network(n, strict=False) for n in table.trusted_proxies]

    def __call__(self, fields: Fields) -> tuple[str | None, dict[str, str]]:
        """``(request_id, tags)``: values are cut to 200 characters and made printable."""
        if not self._names:
            return None, {}
        tags: dict[str, str] = {}
        for name, value in fields:
            tag = self._names.get(name.lower())
            if tag is not None and tag not in tags:
                text = value.decode("utf-8", "replace")[:_VALUE_LIMIT]
                tags[tag] = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        return tags.pop("request_id", None), tags

    def trusts(self, peer: tuple[str, int] | None) -> bool:
        """True for a peer within ``trusted_proxies``."""
        if peer is None or not self._networks:
            return False
        try:
            address = ipaddress.ip_address(peer[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)
