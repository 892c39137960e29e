"""``legato serve`` whose workers tell what they hold, and can be made to fail: for tests of leaks and faults.

Started as a program (``serve(..., program=probed())``) it takes what ``legato serve`` takes.  The processes
are the product's own; only the worker's entry is this file, which

* writes a count of tasks and of live objects by class into FILE at SIGUSR2 (``census``);
* wraps FUNCTION so that it raises at its nth call, where asked to (``fault``).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

CLASSES = ("Exchange", "Client", "LegatoProtocol", "Connection", "StreamTap", "Track", "Call")

#: The text of injected exceptions, which must not be logged (put together, so that no source line shows it).
INJECTED = "-".join(("injected", "s3cr3t"))


def probed(census: Path | None = None, fault: str = "", at_call: int = 1) -> list[str]:
    """What python runs.  ``fault``: ``package.module:Class.method`` or ``package.module:function``."""
    wanted = {"census": str(census or os.devnull), "fault": fault, "at_call": at_call}
    return [str(Path(__file__).resolve()), json.dumps(wanted)]


def take_census(worker: int, file: Path) -> Counter[str]:
    """What a probed worker holds now: ``tasks``, and objects by class name."""
    from tests.helpers.procs import eventually

    file.unlink(missing_ok=True)
    os.kill(worker, signal.SIGUSR2)
    return Counter(eventually(lambda: json.loads(file.read_text()), 10, "a census"))


def _write_census(path: str) -> None:
    # Without a collection first: what only waits for one is held too (full ones are rare).
    held: Counter[str] = Counter(type(one).__name__ for one in gc.get_objects())
    found = {name: held[name] for name in CLASSES}
    found["tasks"] = len(asyncio.all_tasks())
    with open(path + ".new", "w") as file:
        json.dump(found, file)
    os.replace(path + ".new", path)


def _install_fault(where: str, at_call: int) -> None:
    module_name, _, names = where.partition(":")
    owner: Any = importlib.import_module(module_name)
    *path, name = names.split(".")
    for part in path:
        owner = getattr(owner, part)
    right = getattr(owner, name)
    calls = 0

    def wrong(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % at_call == 0:
            raise RuntimeError(INJECTED)
        return right(*args, **more)

    setattr(owner, name, wrong)


def _worker(wanted: dict[str, Any]) -> None:
    from proxy.relay import worker

    if wanted["fault"]:
        _install_fault(wanted["fault"], wanted["at_call"])
    serve = worker.serve

    async def probed_serve(*args: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _write_census, wanted["census"])
        await serve(*args)

    worker.serve = probed_serve  # type: ignore[assignment]
    worker.main()


def _supervise(wanted: str) -> None:
    from proxy import cli, supervisor

    def worker(number: int, fds: list[int], link: str) -> list[str]:
        ordinary = supervisor.worker_command(number, fds, link)
        here = str(Path(__file__).resolve())
        return [sys.executable, here, "proxy.relay.worker", wanted, *ordinary[ordinary.index("--id") :]]

    ordinary_execv = os.execv

    def execv(_: str, command: list[str]) -> None:
        os.execv = ordinary_execv
        sys.exit(supervisor.run(json.loads(command[-1]), worker=worker))

    os.execv = execv  # type: ignore[assignment]
    sys.argv = ["legato", "serve", *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    if sys.argv[1] == "proxy.relay.worker":
        asked = json.loads(sys.argv[2])
        del sys.argv[1:3]
        _worker(asked)
    else:
        _supervise(sys.argv.pop(1))
