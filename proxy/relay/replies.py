"""The answers that are ours: JSON errors in the OpenAI shape, sent only where nothing has been sent yet."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from proxy.relay.headers import Fields


class Reply(NamedTuple):
    """A status, its type in the OpenAI error object, and a message that says what to do."""

    status: int
    reason: bytes
    kind: str
    message: str


_BAD_GATEWAY: Final = (502, b"Bad Gateway", "upstream_error")
_TIMEOUT: Final = (504, b"Gateway Timeout", "timeout_error")
_BAD: Final = (400, b"Bad Request", "invalid_request_error")
_NOT_DONE: Final = (501, b"Not Implemented", "invalid_request_error")
_TOO_LARGE: Final = (431, b"Request Header Fields Too Large", "invalid_request_error")
_EXPECTATION: Final = (417, b"Expectation Failed", "invalid_request_error")

#: code -> reply.  The messages name no upstream address: that is for the operator's eyes.
REPLIES: Final[dict[str, Reply]] = {
    # the upstream's doing
    "connection_refused": Reply(*_BAD_GATEWAY, "The model server refused the connection."),
    "unreachable": Reply(*_BAD_GATEWAY, "The model server cannot be reached."),
    "connect_failed": Reply(*_BAD_GATEWAY, "The model server cannot be reached."),
    "tls_failed": Reply(*_BAD_GATEWAY, "TLS with the model server failed."),
    "name_not_resolved": Reply(*_BAD_GATEWAY, "The model server's name has no address."),
    "no_response": Reply(*_BAD_GATEWAY, "The model server closed without an answer."),
    "bad_response": Reply(*_BAD_GATEWAY, "The model server's answer is not valid HTTP."),
    "connect_timeout": Reply(*_TIMEOUT, "Connecting to the model server took too long."),
    "first_byte_timeout": Reply(*_TIMEOUT, "The model server did not begin to answer in time."),
    "idle_timeout": Reply(*_TIMEOUT, "The model server fell silent."),
    # ours
    "pool_full": Reply(
        503, b"Service Unavailable", "overloaded_error", "Too many requests are in flight; try again."
    ),
    "no_backend": Reply(404, b"Not Found", "invalid_request_error", "No route matches this request."),
    "internal": Reply(500, b"Internal Server Error", "proxy_error", "The proxy failed."),
    # the client's
    "bad_request": Reply(*_BAD, "The request is not valid HTTP/1.1."),
    "bad_host": Reply(*_BAD, "HTTP/1.1 wants exactly one Host field."),
    "head_too_large": Reply(*_TOO_LARGE, "The request's head is too large."),
    "unknown_expectation": Reply(*_EXPECTATION, "Only Expect: 100-continue is understood."),
    "request_timeout": Reply(408, b"Request Timeout", "timeout_error", "The request did not arrive in time."),
    "upgrade": Reply(*_NOT_DONE, "Protocol upgrades are not proxied."),
    "transfer_coding": Reply(*_NOT_DONE, "Only the chunked transfer coding is understood."),
    "method": Reply(*_NOT_DONE, "This method is not proxied."),
}


def reply(code: str) -> tuple[Reply, Fields, bytes]:
    """The reply to ``code``: itself, its header fields (with ``Content-Length``), its JSON body."""
    known = REPLIES[code]
    error = {"message": f"Legato: {known.message}", "type": known.kind, "param": None, "code": code}
    body = msgspec.json.encode({"error": error})
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if known.status == 503:
        fields.append((b"retry-after", b"1"))
    return known, fields, body
