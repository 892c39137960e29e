"""What the data plane and the scorer can say is in the closed lists, word for word.

Workers import nothing of the exporters, so the words stand in both places; here they are held together by
reading the data plane's source.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import proxy.relay
from proxy.exporters import vocabulary
from scoring.outcome import Outcome, SloResult

RELAY = sorted(Path(proxy.relay.__file__).parent.rglob("*.py"))


@cache
def trees() -> tuple[ast.AST, ...]:
    return tuple(ast.parse(file.read_text(encoding="utf-8")) for file in RELAY)


def words(node: ast.AST | None) -> set[str]:
    """The texts that an expression can become: a constant, or either side of a choice."""
    if isinstance(node, ast.IfExp):
        return words(node.body) | words(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def first_arguments(method: str) -> set[str]:
    """The constant first arguments of every call of ``something.method(...)``."""
    return {
        word
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
        for word in words(node.args[0] if node.args else None)
    }


def assigned(attribute: str) -> set[str]:
    """What is assigned to an attribute, or given as a keyword of that name."""
    out: set[str] = set()
    for tree in trees():
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = [target.attr for target in targets if isinstance(target, ast.Attribute)]
            if isinstance(node, ast.keyword):
                names.append(node.arg or "")
            if attribute in names and isinstance(node, ast.Assign | ast.keyword):
                out |= words(node.value)
    return out


def test_outcomes_and_verdicts_are_the_scorers() -> None:
    assert list(vocabulary.OUTCOME) == list(Outcome)
    assert list(vocabulary.RESULT) == list(SloResult)


def test_every_reason_to_be_unmeasured_is_listed() -> None:
    said = first_arguments("_give_up") | assigned("unmeasured")
    assert "tap_error" in said
    assert said == set(vocabulary.UNMEASURED)


def test_everything_that_workers_drop_is_listed() -> None:
    said = {
        word
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "dropped"
        for word in words(node.slice)
    }
    assert "tap_faults" in said
    assert said | {"relay_error"} <= set(vocabulary.DROPPED)
