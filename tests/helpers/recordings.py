"""The recorded exchanges of ``tests/recordings``: loaded, and their HTTP taken apart apart from the product.

recording = load("vllm__chat_stream")
for at_ns, data in recording.response().body: ...
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers.http1 import Headers, parse_head

FOLDER = Path(__file__).resolve().parent.parent / "recordings"

Pieces = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class Response:
    """A recorded response: body pieces without their framing, each byte with the stamp of its recv.

    ``complete``: the framing says that the body is whole (a body that ends by EOF always is).
    """

    status: int
    headers: Headers
    body: Pieces
    complete: bool

    @property
    def whole(self) -> bytes:
        """The whole body."""
        return b"".join(data for _, data in self.body)

    def header(self, name: bytes) -> bytes:
        """The first value of a header (``name`` in lower case), empty where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), b"")


@dataclass(frozen=True)
class Recording:
    """One exchange as it was recorded.  ``pieces``: (ns since the request was sent, bytes of one recv)."""

    name: str
    server: str
    api: str
    method: str
    path: str
    request_headers: tuple[tuple[str, str], ...]
    request_body: bytes
    end: str
    pieces: Pieces

    @property
    def raw(self) -> bytes:
        """The response as it was on the wire."""
        return b"".join(data for _, data in self.pieces)

    @property
    def asked(self) -> dict[str, object]:
        """The request's JSON, empty where it is none."""
        try:
            value = json.loads(self.request_body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def response(self) -> Response:
        """Take the HTTP apart."""
        raw = self.raw
        body_at = raw.index(b"\r\n\r\n") + 4
        head = parse_head(raw[:body_at])
        if (head.get(b"transfer-encoding") or b"").lower() == b"chunked":
            ranges, complete = _chunks(raw, body_at)
        else:
            length = head.get(b"content-length")
            ranges = [(body_at, len(raw))]
            complete = length is None or len(raw) - body_at == int(length)
        return Response(int(head.words[1]), head.headers, tuple(self._stamped(ranges)), complete)

    def _stamped(self, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """The bytes of the ranges, cut where the recvs were cut."""
        starts, offset = [], 0
        for _, data in self.pieces:
            starts.append(offset)
            offset += len(data)
        raw = self.raw
        for begin, end in ranges:
            while begin < end:
                which = bisect_right(starts, begin) - 1
                stop = min(end, starts[which + 1] if which + 1 < len(starts) else end)
                yield self.pieces[which][0], raw[begin:stop]
                begin = stop


def _chunks(raw: bytes, at: int) -> tuple[list[tuple[int, int]], bool]:
    """Where the chunks' data stands in ``raw``, and whether the last chunk came whole."""
    ranges: list[tuple[int, int]] = []
    while True:
        line_end = raw.find(b"\r\n", at)
        if line_end < 0:
            return ranges, False
        size = int(raw[at:line_end].partition(b";")[0], 16)
        at = line_end + 2
        if size == 0:
            return ranges, raw[at : at + 2] == b"\r\n"
        ranges.append((at, min(at + size, len(raw))))
        if at + size + 2 > len(raw):
            return ranges, False
        assert raw[at + size : at + size + 2] == b"\r\n"
        at += size + 2


@cache
def load(name: str) -> Recording:
    """The recording ``SERVER__CASE``."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    request = found["request"]
    headers = request.get("headers") or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return Recording(
        name=name,
        server=found["server"],
        api=found["api"],
        method=request["method"],
        path=request["path"],
        request_headers=tuple((str(key), str(value)) for key, value in pairs),
        request_body=_bytes(request.get("body")),
        end=found["end"],
        pieces=tuple((at_ns, base64.b64decode(data)) for at_ns, data in found["recv"] if data),
    )


def _bytes(body: object) -> bytes:
    if body is None:
        return b""
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def names() -> list[str]:
    """Every recording, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def all_recordings() -> list[Recording]:
    """Every recording, loaded."""
    return [load(name) for name in names()]
