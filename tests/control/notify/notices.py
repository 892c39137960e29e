"""Notices and messages for the tests of those who tell them."""

from __future__ import annotations

from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from msgspec import structs

from proxy.control.alerts.notice import Message, Notice, State, Worst

S = 1_000_000_000
#: Of tests over ``MESSAGES``; making a failure smaller would take minutes with texts of this size.
ODD = settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
#: 2026-01-02T03:04:05Z
BORN = 1_767_323_045 * S
SPIKE = Notice(
    key="spike|vllm|llama|chat",
    incident="01J0INCIDENT",
    number=0,
    state="firing",
    rule="spike",
    severity="page",
    labels={"backend": "vllm", "model": "llama", "slo": "chat"},
    summary="41% of the requests of the last minute missed a deadline, 3% as a rule",
    value=0.41,
    threshold=0.25,
    figures={"requests": 312.0, "baseline": 0.03},
    since_unix_ns=BORN - 20 * S,
    fired_unix_ns=BORN,
    resolved_unix_ns=None,
    at_unix_ns=BORN,
    host="gpu-7",
    worst=(Worst("01J0WORST1", "req-1", "4bf92f3577b34da6a3ce929d0e0e4736", "completed", 14, 0.61),),
    url="http://gpu-7:9464/api/alerts",
    runbook="https://example.com/runbooks/spike.md",
)


def message(number: int = 0, *keys: str, state: State = "firing", **fields: Any) -> Message:
    """A message about these alerts (about ``k`` without any)."""
    if state == "resolved":
        fields = {"resolved_unix_ns": BORN + 60 * S, **fields}
    notices = tuple(structs.replace(SPIKE, key=key, state=state, **fields) for key in keys or ("k",))
    return Message(f"m{number}", notices[0].rule, state, notices)


_texts = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    ["<!channel> & <https://x|y>", "&" * 5_000, "😀" * 3_000, "*bold* `code`\n\n", "</>", "a" * 4_000, ""]
)
_times = st.integers(0, 4_000_000_000 * S)
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_worst = st.builds(
    Worst,
    id=_texts,
    request_id=st.none() | _texts,
    trace_id=st.none() | _texts,
    outcome=_texts,
    missed=st.none() | st.integers(0, 10**9),
    fluidity=st.none() | st.floats(0, 1),
)
_notices = st.builds(
    Notice,
    key=_texts,
    incident=_texts,
    number=st.integers(0, 1_000),
    state=st.sampled_from(["firing", "resolved"]),
    rule=_texts,
    severity=st.sampled_from(["page", "ticket"]),
    labels=st.dictionaries(_texts, _texts, max_size=14),
    summary=_texts,
    value=st.none() | st.floats(),
    threshold=_numbers,
    figures=st.dictionaries(_texts, st.floats(), max_size=8),
    since_unix_ns=_times,
    fired_unix_ns=_times,
    resolved_unix_ns=st.none() | _times,
    at_unix_ns=_times,
    host=_texts,
    worst=st.lists(_worst, max_size=7).map(tuple),
    url=st.none() | _texts | st.just("https://legato.example.com/api/alerts?rule=spike"),
    runbook=st.none() | _texts | st.just("https://example.com/a|b>c"),
)
#: Whatever an alert may hold, however odd.
MESSAGES = st.builds(
    Message,
    id=_texts,
    rule=_texts,
    state=st.sampled_from(["firing", "resolved"]),
    notices=st.lists(_notices, max_size=4).map(tuple) | _notices.map(lambda notice: (notice,) * 70),
)
