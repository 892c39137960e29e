"""``python -m deploy.fuzz [--seconds 60]`` fuzzes the tap, coverage-guided; ``--replay FILE``: one input."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 10  # one input
RSS_MB = 1024
INPUT_MAX = 16 * 1024


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer's dice; 0: another one each time")
    parser.add_argument(
        "--corpus", type=Path, help="a folder of inputs that is kept and grows (a temporary one)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("fuzz-findings"), help="where inputs go that break it"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="run one input, say what it means and what broke"
    )
    return parser.parse_args(arguments)


def fuzz(given: argparse.Namespace) -> int:
    """Exit status 0; 1 when something broke; 2 when it cannot run."""
    if importlib.util.find_spec("atheris") is None:
        print("atheris is missing: pip install -e '.[dev]'", file=sys.stderr)
        return 2
    out = given.out.resolve()
    before = set(out.glob("*"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="legato-fuzz-") as folder:
        corpus = (given.corpus or Path(folder) / "corpus").resolve()
        words = prepare(corpus, Path(folder))
        command = [
            *(sys.executable, "-m", "deploy.fuzz.engine", str(corpus), f"-dict={words}"),
            *(f"-max_total_time={given.seconds}", f"-seed={given.seed}", f"-artifact_prefix={out}/"),
            *(f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={RSS_MB}", f"-max_len={INPUT_MAX}"),
            *("-use_value_profile=0", "-print_final_stats=1", "-verbosity=1"),
        ]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
    found = sorted(set(out.glob("*")) - before)
    for path in found:
        print(f"broken by {path}; again: python -m deploy.fuzz --replay {path}", file=sys.stderr)
    if not any(out.iterdir()):
        out.rmdir()
    return 1 if found or status else 0


def prepare(corpus: Path, folder: Path) -> Path:
    """Write the seeds into the corpus, and the dictionary; return where that is."""
    from deploy.fuzz.seeds import dictionary, seeds

    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (corpus / f"seed-{number:03d}").write_bytes(data)
    words = folder / "words.dict"
    words.write_text(dictionary())
    return words


def replay(path: Path) -> int:
    """One input, without the fuzzer: exit status 1 if it breaks something."""
    from deploy.fuzz import properties
    from deploy.fuzz.inputs import planned

    data = path.read_bytes()
    print(planned(data))
    properties.shrink()
    try:
        properties.check(data)
    except Exception:
        traceback.print_exc()
        return 1
    print("holds")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """See ``fuzz`` and ``replay``."""
    given = parse(arguments)
    return replay(given.replay) if given.replay is not None else fuzz(given)


if __name__ == "__main__":
    sys.exit(main())
