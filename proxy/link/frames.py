"""Frames: a 4-byte big-endian length and that many bytes of msgpack."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from proxy.link.down import Down
from proxy.link.up import Up

PROTOCOL: Final = 1
MAX_FRAME: Final = 64 * 1024 * 1024
_HEAD: Final = struct.Struct(">I")


class LinkError(Exception):
    """The peer sent something that is no frame of this protocol."""


class Frames:
    """Incremental decoder of frames: ``feed(bytes) -> list[payload]``; raises ``LinkError`` on nonsense."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that are complete now."""
        buffer = self._buffer
        buffer += data
        out: list[bytes] = []
        at = 0
        while len(buffer) - at >= 4:
            (size,) = _HEAD.unpack_from(buffer, at)
            if size > MAX_FRAME:
                raise LinkError(f"frame of {size} bytes, at most {MAX_FRAME} are allowed")
            if len(buffer) - at - 4 < size:
                break
            out.append(bytes(buffer[at + 4 : at + 4 + size]))
            at += 4 + size
        if at:
            del buffer[:at]
        return out


_encoder = msgspec.msgpack.Encoder()
_up: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)
_down: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)


def frame(message: Up | Down) -> bytes:
    """Encode one message with its length."""
    payload = _encoder.encode(message)
    return _HEAD.pack(len(payload)) + payload


def decode_up(payload: bytes) -> Up:
    """Decode what a worker sent; ``LinkError`` if it is no message."""
    try:
        return _up.decode(payload)
    except msgspec.MsgspecError as error:
        raise LinkError(str(error)) from error


def decode_down(payload: bytes) -> Down:
    """Decode what the control process sent; ``LinkError`` if it is no message."""
    try:
        return _down.decode(payload)
    except msgspec.MsgspecError as error:
        raise LinkError(str(error)) from error
