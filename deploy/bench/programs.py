"""The bench's own programs: compiled with gcc into a folder of this run."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


class BenchError(Exception):
    """The bench cannot run here; the message says what is missing and the mend."""


@dataclass(frozen=True)
class Programs:
    """Paths of the compiled mock upstream and load client."""

    upstream: Path
    load: Path


def build(folder: Path) -> Programs:
    """Compile both; ``BenchError`` where there is no C compiler or it refuses."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError(
            "no C compiler: the upstream and the load client must not be what limits the measurement, so "
            "they are C. Install one (Debian: apt-get install gcc libc6-dev) and run `make bench` again."
        )
    for name in ("upstream", "load"):
        command = [compiler, "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{' '.join(command)} failed:\n{done.stderr}")
    return Programs(folder / "upstream", folder / "load")


def make_certificate(folder: Path) -> tuple[Path, Path] | None:
    """A self-signed certificate for localhost and its key, by the openssl command; ``None`` without one."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    cert, key = folder / "cert.pem", folder / "key.pem"
    done = subprocess.run(
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -keyout {key} -out {cert}".split(),
        capture_output=True,
    )
    return (cert, key) if done.returncode == 0 else None
