"""Every way through a method, with what its variables hold at the end."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autovla_rt.export.recipes.evaluator import Evaluator
from autovla_rt.export.recipes.source import SourceFile, call_name, final_name, stored_names
from autovla_rt.export.recipes.values import SLOT_OF_NAME, Unknown, Value

COT_SWITCHES = ("use_cot", "using_cot")
"""Attributes or variables that say whether a chain of thought is wanted."""

LEAVING_CALLS = ("exit", "quit", "_exit")

MAX_PATHS = 128


@dataclass(frozen=True)
class ControlPath:
    """One way through a method: what it assumed of the switch, and its variables."""

    use_cot: bool | None = None
    names: dict[str, Value] = field(default_factory=dict)

    def bind(self, names: dict[str, Value]) -> ControlPath:
        """Return the path after assignments."""
        return replace(self, names={**self.names, **names})


def follow(source: SourceFile, method: ast.FunctionDef) -> list[ControlPath]:
    """Return the distinct ways through a method that reach its end or a return.

    Only `if` splits a path; the switch of `COT_SWITCHES` is remembered. Whatever another compound
    statement assigns becomes unknown.

    Raises:
        RecipeError: if there are more than `MAX_PATHS` ways.
    """
    walker = _Walker(source)
    open_ends = walker.run(method.body, [ControlPath()])
    return [*walker.returned, *open_ends]


class _Walker:
    def __init__(self, source: SourceFile) -> None:
        self.returned: list[ControlPath] = []
        self._source = source
        self._evaluator = Evaluator(source)

    def run(self, statements: Sequence[ast.stmt], paths: list[ControlPath]) -> list[ControlPath]:
        """Return the paths that leave the last statement downwards."""
        for statement in statements:
            paths = self._merge(
                statement, [p for path in paths for p in self._step(statement, path)]
            )
        return paths

    def _step(self, statement: ast.stmt, path: ControlPath) -> list[ControlPath]:
        header = statement.test if isinstance(statement, ast.If) else statement
        if walrus := [node for node in ast.walk(header) if isinstance(node, ast.NamedExpr)]:
            path = self._disturb(walrus, path)
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return [path.bind({name: self._evaluator.assign(name, value, path.names)})]
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                return [path.bind({name: self._evaluator.assign(name, value, path.names)})]
            case ast.If():
                return self._branch(statement, path)
            case ast.Return():
                self.returned.append(path)
                return []
            case ast.Raise():
                return []
            case ast.Expr(value=ast.Call() as call) if call_name(call) in LEAVING_CALLS:
                return []
            case ast.Assign(targets=targets, value=value):
                self._evaluator.evaluate(value, path.names)
                return [self._disturb(targets, path)]
            case _:
                return [self._disturb([statement], path)]

    def _branch(self, statement: ast.If, path: ControlPath) -> list[ControlPath]:
        switch = _switch(statement.test)
        if switch is None:
            self._evaluator.unknown(statement.test, path.names, "a condition")
        ends = []
        for body, taken in ((statement.body, True), (statement.orelse, False)):
            use_cot = path.use_cot if switch is None else taken == switch
            if path.use_cot in (None, use_cot):
                ends += self.run(body, [replace(path, use_cot=use_cot)])
        return ends

    def _disturb(self, nodes: Sequence[ast.stmt | ast.expr], path: ControlPath) -> ControlPath:
        """Return the path after statements whose effect is not followed."""
        bound: dict[str, Value] = {}
        for node in nodes:
            unknown = self._evaluator.unknown(
                node, path.names, "a plain assignment of the value, outside of loops and blocks"
            )
            bound |= dict.fromkeys(stored_names([node]), unknown)
        return path.bind(bound)

    def _merge(self, statement: ast.stmt, paths: list[ControlPath]) -> list[ControlPath]:
        """Return the paths without those that differ only in values that are not understood."""
        distinct: list[ControlPath] = []
        seen: list[tuple[bool | None, dict[str, Value]]] = []
        for path in paths:
            key = (path.use_cot, {n: v for n, v in path.names.items() if _matters(n, v)})
            if key not in seen:
                seen.append(key)
                distinct.append(path)
        if len(distinct) > MAX_PATHS:
            raise self._source.refuse(
                statement, f"at most {MAX_PATHS} different ways through the method"
            )
        return distinct


def _matters(name: str, value: Value) -> bool:
    # An unassigned slot name is a parameter, hence a slot; an unknown one is not.
    return name in SLOT_OF_NAME or not isinstance(value, Unknown)


def _switch(test: ast.expr) -> bool | None:
    """Return what the chain-of-thought switch is where `test` holds, None for another test."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inverse = _switch(operand)
            return None if inverse is None else not inverse
        case _:
            return True if final_name(test) in COT_SWITCHES else None
