"""The recipe (prompt and answer format), from a training checkout or a TOML file."""

from __future__ import annotations

from pathlib import Path

from autovla_rt.config import Recipe
from autovla_rt.errors import RecipeError
from autovla_rt.export.recipes.check import check_recipe
from autovla_rt.export.recipes.checkout import read_checkout
from autovla_rt.export.recipes.toml import read_toml, render_recipe

__all__ = ["check_recipe", "read_checkout", "read_recipe", "read_toml", "render_recipe"]


def read_recipe(path: Path) -> Recipe:
    """Read the recipe at `path`: a folder is a training checkout, a `.toml` file a recipe by hand.

    Raises:
        RecipeError: if `path` is neither, or what it holds cannot be read as a recipe.
        StorageError: if the file system refuses to read it.
    """
    if path.is_dir():
        return read_checkout(path)
    if path.suffix == ".toml":
        return read_toml(path)
    found = "another kind of file" if path.exists() else "nothing there"
    raise RecipeError(
        f"{path}: expected the root folder of an AutoVLA training checkout or a .toml recipe, "
        f"found {found}. demo/recipe.toml is an example of the latter."
    )
