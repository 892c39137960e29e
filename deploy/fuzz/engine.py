"""The process that fuzzes: ``python -m deploy.fuzz.engine CORPUS -max_total_time=60``, libFuzzer's options.

It imports the relay instrumented and never returns: libFuzzer ends it.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    """Fuzz until libFuzzer says that it is over."""
    with atheris.instrument_imports(include=["proxy.relay"]):
        from deploy.fuzz import properties
    properties.shrink()
    atheris.Setup(sys.argv, properties.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
