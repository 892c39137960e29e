"""Writes ``webhook.schema.json``, what a webhook is sent: ``python -m proxy.control.notify.reference``.

A test holds the file against ``document()``, so that it cannot fall behind.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from proxy.control.notify.webhook import Payload

FILE: Final = Path(__file__).with_name("webhook.schema.json")


def document() -> str:
    """The JSON Schema of ``Payload`` (draft 2020-12)."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What a webhook of Legato's is sent",
        **msgspec.json.schema(Payload),
    }
    for each in schema["$defs"].values():
        each["description"] = inspect.cleandoc(each["description"])
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
    print(f"wrote {FILE.name}")
