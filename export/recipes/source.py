"""One Python file of the user's checkout, parsed and never executed."""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
import warnings
from collections.abc import Sequence
from pathlib import Path

from autovla_rt.errors import RecipeError, StorageError

ADVICE = (
    "Nothing was guessed and nothing was run. Read an unmodified training checkout, or write the "
    "recipe by hand: demo/recipe.toml shows the format."
)


class SourceFile:
    """The syntax tree of one file, with refusals that show its lines.

    Attributes:
        relative: path inside the checkout, with slashes.
        sha256: hash of the bytes that were parsed.
    """

    def __init__(self, root: Path, relative: str) -> None:
        """Read and parse `root / relative`.

        Raises:
            RecipeError: if the file is missing, not UTF-8 or not Python.
            StorageError: if the file system refuses to read it.
        """
        self.relative = relative
        self._path = root / relative
        data = self._read()
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._lines = re.split("\r\n|\r|\n", self._decode(data))
        self._tree = self._parse(data)

    def method(self, class_name: str | None, name: str) -> ast.FunctionDef:
        """Return method `name` of the top-level class (None: of the only class that has it).

        Raises:
            RecipeError: if there is no such method, or more than one.
        """
        found = [
            method
            for node in self._tree.body
            if isinstance(node, ast.ClassDef) and class_name in (None, node.name)
            for method in node.body
            if isinstance(method, ast.FunctionDef) and method.name == name
        ]
        if len(found) != 1:
            owner = f"class {class_name}" if class_name else "one class"
            places = ", ".join(f"line {method.lineno}" for method in found)
            raise RecipeError(
                f"{self._path}: expected {owner} with one method {name}, "
                f"found {places or 'none'}.\n{ADVICE}"
            )
        return found[0]

    def place(self, node: ast.AST) -> str:
        """Return `path:line` of a node and, below, the source line itself."""
        number = getattr(node, "lineno", 1)
        return f"{self._path}:{number}\n    {self._lines[number - 1].strip()}\n"

    def refuse(self, node: ast.AST, expected: str) -> RecipeError:
        """Return the error for a shape that the reader does not know."""
        return RecipeError(f"{self.place(node)}Expected {expected}.\n{ADVICE}")

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise RecipeError(
                f"{self._path}: expected this file of an AutoVLA training checkout, found none.\n"
                f"Give the checkout's root folder (the one that holds models/ and dataset_utils/), "
                f"or a recipe in TOML."
            ) from None
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read ({error.strerror}).") from error

    def _decode(self, data: bytes) -> str:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            if not encoding.startswith("utf-8"):
                raise SyntaxError(f"encoding {encoding} declared")
            return data.decode(encoding)
        except (SyntaxError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{self._path}: expected Python source in UTF-8, got: {error}.\n{ADVICE}"
            ) from None

    def _parse(self, data: bytes) -> ast.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on the user's escapes; not ours to report
                return ast.parse(data, filename=str(self._path))
        except SyntaxError as error:
            line = (error.text or "").strip()
            raise RecipeError(
                f"{self._path}:{error.lineno or 1}\n    {line}\n"
                f"Expected Python that this interpreter can parse, got: {error.msg}.\n{ADVICE}"
            ) from None
        except (RecursionError, ValueError, MemoryError) as error:
            raise RecipeError(
                f"{self._path}: expected Python source, the parser gave up: {error}.\n{ADVICE}"
            ) from None


def final_name(node: ast.expr) -> str:
    """Return the last name of a dotted expression (`self.a.b` -> "b"), "" for other expressions."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def call_name(node: ast.expr) -> str:
    """Return the last name of the called function, "" if `node` is no call."""
    return final_name(node.func) if isinstance(node, ast.Call) else ""


def stored_names(nodes: Sequence[ast.AST]) -> list[str]:
    """Return every name that the nodes assign, import or define."""
    names: list[str] = []
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                names.append(name)
            case ast.alias(name=name, asname=alias):
                names.append((alias or name).partition(".")[0])
            case (
                ast.FunctionDef(name=str(name))
                | ast.AsyncFunctionDef(name=str(name))
                | ast.ClassDef(name=str(name))
                | ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
                | ast.MatchMapping(rest=str(name))
            ):
                names.append(name)
    return names
