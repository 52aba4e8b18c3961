"""Constant folding over the expressions that build a prompt or an answer.

An expression is either understood completely or becomes `Unknown`, which carries the refusal and
raises it only where its value is needed. A list or dict that an expression which is not understood
could change is marked (`spoiled`) and refused where it is read.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping

from autovla_rt.config import Slot
from autovla_rt.export.recipes.source import SourceFile, call_name
from autovla_rt.export.recipes.values import (
    ACTION_RENDERERS,
    SLOT_OF_NAME,
    SLOT_SOURCES,
    VECTOR_NORMS,
    Names,
    Part,
    RawInstruction,
    SlotName,
    Structure,
    Text,
    Unknown,
    Value,
    frame_of_name,
)

READ_ONLY_CALLS = ("process_vision_info", "apply_chat_template", "print", "len", "isinstance")
"""Functions that may be given the messages without being suspected of changing them."""

_UNCHANGING: Mapping[tuple[str, tuple[Part, ...]], Slot] = {
    ("lower", (RawInstruction(),)): Slot(slot="instruction"),
    ("lower", (Slot(slot="instruction"),)): Slot(slot="instruction"),
    ("strip", (Slot(slot="reasoning"),)): Slot(slot="reasoning"),
}
"""Methods that leave a slot the slot that it is: (method, what it is called on) -> the slot."""


class Evaluator:
    """Folds expressions of one source file."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        self._handlers: dict[type[ast.expr], Callable[..., Value]] = {
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.JoinedStr: self._joined,
            ast.BinOp: self._sum,
            ast.Call: self._call,
            ast.Subscript: self._subscript,
            ast.List: self._list,
            ast.Tuple: self._list,
            ast.Dict: self._dict,
        }

    def evaluate(self, node: ast.expr, names: Names) -> Value:
        """Return the value of an expression where `names` are bound."""
        handler = self._handlers.get(type(node))
        if handler is None:
            return self.unknown(node, names, "text, a slot, a list or a dict")
        return handler(node, names)

    def assign(self, name: str, node: ast.expr, names: Names) -> Value:
        """Return what `name` is bound to by `name = node`.

        A name of `SLOT_OF_NAME` becomes its slot if the expression reads the value unchanged
        (a norm for the numbers, lower-cased for the instruction).
        """
        value = self.evaluate(node, names)
        slot = SLOT_OF_NAME.get(name)
        if slot is None or not isinstance(value, Unknown):
            return value
        part = _assigned_slot(slot, node)
        if part is None:
            return Unknown(self._source.refuse(node, f"{name} = {SLOT_SOURCES[slot]}"))
        return Text((part,), node)

    def unknown(self, node: ast.AST, names: Names, expected: str) -> Unknown:
        """Return `Unknown` for a node and mark every list or dict that the node could change."""
        error = self._source.refuse(node, expected)
        for name in _exposed_names(node):
            value = names.get(name)
            if isinstance(value, Structure):
                value.spoiled = self._source.refuse(
                    node, f"{name} to stay as it was first written; this might change it"
                )
        return Unknown(error)

    def _constant(self, node: ast.Constant, names: Names) -> Value:
        if isinstance(node.value, str):
            return Text((node.value,), node)
        return self.unknown(node, names, "text")

    def _name(self, node: ast.Name, names: Names) -> Value:
        value = names.get(node.id)
        frame = frame_of_name(node.id)
        if isinstance(value, Text | Structure):
            return value
        if frame:
            return Text((frame,), node)
        if value is not None:
            return value
        slot = SLOT_OF_NAME.get(node.id)
        if slot is not None:
            return Text((RawInstruction() if slot == "instruction" else Slot(slot=slot),), node)
        return self.unknown(
            node,
            names,
            f"a name that is assigned once before in the method, or one of "
            f"{', '.join(SLOT_OF_NAME)}; got {node.id}",
        )

    def _joined(self, node: ast.JoinedStr, names: Names) -> Value:
        parts: list[Part] = []
        for piece in node.values:
            value = (
                self._formatted(piece, names)
                if isinstance(piece, ast.FormattedValue)
                else self.evaluate(piece, names)
            )
            if not isinstance(value, Text):
                return value
            parts += value.parts
        return Text(tuple(parts), node)

    def _formatted(self, node: ast.FormattedValue, names: Names) -> Value:
        # In Python 3.11 only the inner expression knows its line, not the FormattedValue.
        value = self.evaluate(node.value, names)
        if not isinstance(value, Text):
            return self._no_text(node.value, value)
        if RawInstruction() in value.parts:
            return Unknown(self._source.refuse(node.value, SLOT_SOURCES["instruction"]))
        if node.conversion != -1:
            return Unknown(self._source.refuse(node.value, "a value without !r, !s or !a"))
        if node.format_spec is None:
            return value
        specification = _constant_text(node.format_spec)
        match value.parts:
            case (Slot(format="") as slot,) if specification is not None:
                return Text((slot.model_copy(update={"format": specification}),), node.value)
        return Unknown(
            self._source.refuse(node.value, "a constant format, and only on a slot (velocity:.3f)")
        )

    def _no_text(self, node: ast.AST, value: Value) -> Unknown:
        if isinstance(value, Unknown):
            return value
        return Unknown(self._source.refuse(node, "text, got a list or dict"))

    def _sum(self, node: ast.BinOp, names: Names) -> Value:
        if not isinstance(node.op, ast.Add):
            return self.unknown(node, names, "text joined with + or an f-string")
        left, right = self.evaluate(node.left, names), self.evaluate(node.right, names)
        if isinstance(left, Text) and isinstance(right, Text):
            return Text(left.parts + right.parts, node)
        for side in (left, right):
            if isinstance(side, Unknown):
                return side
        return self.unknown(node, names, "text on both sides of +")

    def _call(self, node: ast.Call, names: Names) -> Value:
        if call_name(node) in ACTION_RENDERERS:
            return Text((Slot(slot="actions"),), node)
        match node:
            case ast.Call(func=ast.Attribute(ast.Name() as receiver, method), args=[], keywords=[]):
                value = self._name(receiver, names)
                if isinstance(value, Text) and (method, value.parts) in _UNCHANGING:
                    return Text((_UNCHANGING[method, value.parts],), node)
            case ast.Call(func=ast.Attribute(separator, "join"), args=[texts], keywords=[]):
                return self._join(node, separator, texts, names)
        return self.unknown(
            node,
            names,
            f"text without a call (only {', '.join(ACTION_RENDERERS)}, instruction.lower(), "
            f"strip() on the reasoning and join over a list of texts are known)",
        )

    def _join(self, node: ast.Call, receiver: ast.expr, texts: ast.expr, names: Names) -> Value:
        separator, items = self.evaluate(receiver, names), self.evaluate(texts, names)
        if not isinstance(separator, Text) or not isinstance(items, Structure):
            return self.unknown(node, names, "join over a list of texts")
        parts: list[Part] = []
        for number, item in enumerate(items.values.values()):
            if items.spoiled or not isinstance(item, Text):
                return self.unknown(node, names, "join over a list of texts")
            parts += (*separator.parts, *item.parts) if number else item.parts
        return Text(tuple(parts), node)

    def _subscript(self, node: ast.Subscript, names: Names) -> Value:
        index = node.slice
        if isinstance(index, ast.Constant) and isinstance(index.value, int):
            value = self.evaluate(node.value, names)
            if isinstance(value, Unknown):
                return value
            if isinstance(value, Text) and value.parts == (Slot(slot="reasoning"),):
                return Text(value.parts, node)
        return self.unknown(node, names, "a variable; only the reasoning may be indexed by number")

    def _list(self, node: ast.List | ast.Tuple, names: Names) -> Value:
        if any(isinstance(item, ast.Starred) for item in node.elts):
            return self.unknown(node, names, "a list without *")
        values = {str(i): self.evaluate(item, names) for i, item in enumerate(node.elts)}
        return Structure("list", values, node)

    def _dict(self, node: ast.Dict, names: Names) -> Value:
        keys = [_constant_text(key) for key in node.keys]
        if None in keys or len(set(keys)) < len(keys):
            return self.unknown(node, names, "a dict with distinct constant keys and without **")
        values = (self.evaluate(value, names) for value in node.values)
        return Structure(
            "dict", {str(key): value for key, value in zip(keys, values, strict=True)}, node
        )


def _assigned_slot(slot: SlotName, node: ast.expr) -> Slot | RawInstruction | None:
    """Return what a variable of this slot holds after `= node`, None if that is not known."""
    if slot == "instruction" and _is_read(node):
        return RawInstruction()
    known = {
        "velocity": _is_read(node) or _is_norm(node),
        "acceleration": _is_read(node) or _is_norm(node),
        "instruction": call_name(node) == "lower" and _is_read(_receiver(node)),
        "reasoning": _is_read(node) or (call_name(node) == "strip" and _is_read(_receiver(node))),
        "actions": call_name(node) == "join" and _constant_text(_receiver(node)) == "",
    }
    return Slot(slot=slot) if known[slot] else None


def _receiver(node: ast.expr) -> ast.expr:
    """Return `x` of `x.method(...)`, the node itself if it is something else."""
    match node:
        case ast.Call(func=ast.Attribute(value=receiver)):
            return receiver
    return node


def _is_norm(node: ast.expr) -> bool:
    """Tell whether an expression is a norm: sqrt of squares, or another norm of components."""
    match node:
        case ast.Call(args=[argument], keywords=[]) if call_name(node) == "sqrt":
            return _is_sum_of_squares(argument)
        case ast.Call(args=[ast.List(parts) | ast.Tuple(parts)], keywords=[]) if (
            call_name(node) == "norm"
        ):
            return all(map(_is_component, parts))
        case ast.Call(args=[argument], keywords=[]) if call_name(node) in VECTOR_NORMS:
            return _is_component(argument)
        case ast.Call(args=arguments, keywords=[]) if call_name(node) == "hypot":
            return all(map(_is_component, arguments))
    return False


def _is_sum_of_squares(node: ast.expr) -> bool:
    """Tell whether an expression is `x**2 + y**2 + ...`; any other arithmetic changes the unit."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            return _is_sum_of_squares(left) and _is_sum_of_squares(right)
        case ast.BinOp(base, ast.Pow(), ast.Constant(value=2)):
            return _is_component(base)
    return False


def _is_component(node: ast.expr) -> bool:
    """Tell whether an expression only reads a number or vector, or is a norm of such."""
    match node:
        case ast.Name():
            return True
        case ast.Subscript(value=holder) | ast.Attribute(value=holder):
            return _is_component(holder)
        case ast.Call(func=ast.Attribute(value=holder)) if call_name(node) == "get":
            return _is_read(node) and _is_component(holder)
    return _is_norm(node)


def _is_read(node: ast.expr) -> bool:
    """Tell whether an expression reads one entry: `x["key"]`, `x.name` or `x.get("key")`."""
    if isinstance(node, ast.Subscript):
        return _constant_text(node.slice) is not None
    if call_name(node) == "get":
        return isinstance(node, ast.Call) and bool(node.args) and not node.keywords
    return isinstance(node, ast.Attribute)


def _constant_text(node: ast.expr | None) -> str | None:
    """Return the text of a constant or of an f-string without holes."""
    if isinstance(node, ast.JoinedStr):
        pieces = [_constant_text(piece) for piece in node.values]
        return None if None in pieces else "".join(map(str, pieces))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _exposed_names(node: ast.AST) -> Iterator[str]:
    """Yield the names in a node that it could change: all but plain arguments of known readers."""
    if isinstance(node, ast.Name):
        yield node.id
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call) and call_name(node) in READ_ONLY_CALLS:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        children = [node.func, *(value for value in arguments if not isinstance(value, ast.Name))]
    for child in children:
        yield from _exposed_names(child)
