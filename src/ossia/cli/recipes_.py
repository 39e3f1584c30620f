"""The commands `ossia recipes ls`, `show`, `cp`, `fields`, `schema` and `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb

app = verb("List, show, copy and document recipes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name of a recipe that comes with Ossia, or a file.")]


@app.command()
def ls(json: output.Json = False) -> None:
    """List the recipes that come with Ossia."""
    from ossia import recipes

    loaded = {name: recipes.load_recipe(str(path)) for name, path in recipes.available().items()}
    if json:
        keys = {"description", "hardware"}
        output.print_json([{"name": name} | recipe.model_dump(include=keys) for name, recipe in loaded.items()])
        return
    output.table(
        ("recipe", "for", "hardware"), [(name, recipe.description, recipe.hardware) for name, recipe in loaded.items()]
    )
    output.next_step("ossia plan tiny-demo")


@app.command()
def show(recipe: Name, set_: output.Set = None, json: output.Json = False) -> None:
    """Print a recipe's file. With --set or --json, print the value of every setting."""
    from ossia import recipes

    loaded = recipes.load_recipe(recipe, set_ or [])
    if json:
        output.print_json(loaded.model_dump(mode="json"))
    else:
        text = recipes.dump(loaded) if set_ else recipes.recipe_file(recipe).read_text(encoding="utf-8")
        print(text.rstrip())  # unchanged, so that it can be redirected to a file


@app.command()
def cp(
    recipe: Name,
    to: Annotated[Path | None, typer.Argument(help="A file or a folder. Default: the current folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy a recipe with its comments, so that you can change it."""
    from ossia import recipes

    output.next_step(f"ossia plan {recipes.copy(recipe, to or Path(), force=force)}")


@app.command()
def fields(json: output.Json = False) -> None:
    """List every setting with its default and its meaning."""
    from ossia import recipes

    rows = list(recipes.recipe_fields())
    if json:
        output.print_json([{"name": name, "default": default, "help": text} for name, default, text in rows])
        return
    output.table(("setting", "default", "meaning"), [(name, str(default), text) for name, default, text in rows])


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from ossia import recipes

    output.print_json(recipes.recipe_schema())


@app.command()
def check(recipe: Name, set_: output.Set = None, json: output.Json = False) -> None:
    """Validate a recipe. Exits with 2 and prints the line if something is wrong."""
    from ossia import recipes

    loaded = recipes.load_recipe(recipe, set_ or [])
    if json:
        output.print_json({"valid": True, "name": loaded.name, "file": str(recipes.recipe_file(recipe))})
        return
    output.out().print(f"{recipe}: a valid recipe called {loaded.name}", markup=False)
    output.next_step(f"ossia plan {recipe}")
