"""The admin API's tokens: one that is none keeps nobody out, and is refused wherever it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Boot, ConfigErrors, load
from proxy.control.core import Controller
from proxy.tables import build_table
from tests.control.asked import asking
from tests.control.facts import T0, UNIX

NO_TOKEN = [
    ("nothing", b"", "is empty"),
    ("a line without a word", b" \n\n", "holds no token"),
    ("several lines", b"one\ntwo\n", "one line of plain ASCII"),
    ("letters that no header carries", "pässwort".encode(), "one line of plain ASCII"),
    ("no text", b"\xff\xfe\x00", "one line of plain ASCII"),
]


@pytest.mark.parametrize("name", ["token", "write_token"])
@pytest.mark.parametrize(
    ("held", "mend"), [case[1:] for case in NO_TOKEN], ids=[case[0] for case in NO_TOKEN]
)
def test_a_file_that_holds_no_token_is_refused(name: str, held: bytes, mend: str, tmp_path: Path) -> None:
    (tmp_path / "held").write_bytes(held)
    file = tmp_path / "legato.yaml"
    file.write_text(f"backends: {{a: {{url: 'http://a'}}}}\nadmin: {{{name}_file: held}}\n")
    with pytest.raises(ConfigErrors) as caught:
        load(Boot(file=str(file), flags={}), {})
    (problem,) = caught.value.problems
    assert problem.key == f"admin.{name}_file"
    assert mend in problem.mend
    assert "/held'" in problem.mend  # which file
    assert "two" not in problem.mend


@pytest.mark.parametrize("name", ["token", "write_token"])
@pytest.mark.parametrize("value", ["", " ", "a\nb"])
def test_a_variable_that_holds_no_token_is_refused(name: str, value: str) -> None:
    variable = f"LEGATO_ADMIN__{name.upper()}"
    with pytest.raises(ConfigErrors) as caught:
        load(Boot(file=None, flags={"upstream": "http://a"}), {variable: value})
    (problem,) = caught.value.problems
    assert (problem.place, problem.key) == (variable, f"admin.{name}")
    assert value.strip() == "" or value not in str(caught.value)


@pytest.mark.parametrize("sends", [None, "", " "])
def test_an_empty_token_lets_nobody_in(sends: str | None) -> None:
    table = build_table(load(Boot(file=None, flags={"upstream": "http://a"}), {}), 1)
    control = Controller(table, instance="i", version="1", unix_ns=lambda: UNIX, monotonic_ns=lambda: T0)
    asker = asking(control, lambda *_: [], token="", address="10.0.0.9", host="legato.example", sends=sends)
    assert asker.get("/api/version").status_code == 401
