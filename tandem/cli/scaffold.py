"""`tandem new` writes a domain to begin with; `tandem add` writes its next command, event, view or query."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tandem.cli.output import WRONG_USAGE, Commands, Json, complain, print_json
from tandem.scaffold.add import add_command, add_event, add_query, add_view
from tandem.scaffold.names import CannotWrite, name_of
from tandem.scaffold.new import new_domain
from tandem.scaffold.templates import Written

_Folder = Annotated[Path, typer.Option(help="The domain's folder.", file_okay=False)]
_Of = Annotated[str, typer.Option(help="The aggregate that it is about; needed where there are several.")]


def add_to(app: typer.Typer) -> None:
    @app.command()
    def new(
        name: Annotated[str, typer.Argument(help="What the domain is called: a Python package, such as garden.")],
        *,
        aggregate: Annotated[
            str, typer.Option(help="What its first aggregate is called, in the singular, such as plant.")
        ] = "item",
        folder: Annotated[
            Path | None, typer.Option(help="An empty folder, or one to be made.", show_default="the name")
        ] = None,
        as_json: Json = False,
    ) -> None:
        """Write a running domain: its contract, an aggregate, a view, a query and a watch, tests, Makefile and CI.

        It needs nothing but the package tandem-cqrs, and imports nothing of a domain that is there.
        """
        home = folder or Path(name_of(name).snake)
        following = [f"cd {home}", "pip install -e '.[dev]'", "make test", "make up"]
        _write(lambda: new_domain(name, aggregate, home), following, as_json=as_json)

    add = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        help="Write one more command, event, view or query: its part of the contract, a stub, and a test that fails.",
    )

    @add.command()
    def command(
        name: Annotated[str, typer.Argument(help="In the imperative, such as PrunePlant.")],
        *,
        of: _Of = "",
        creates: Annotated[bool, typer.Option("--creates", help="It creates one.")] = False,
        folder: _Folder = Path(),
        as_json: Json = False,
    ) -> None:
        """Add a command: its RPC, a stub of its rule, and a test."""
        _write(lambda: add_command(folder, name, of, creates=creates), _TEST, as_json=as_json)

    @add.command()
    def event(
        name: Annotated[str, typer.Argument(help="In the past tense, such as PlantPruned.")],
        *,
        of: _Of = "",
        folder: _Folder = Path(),
        as_json: Json = False,
    ) -> None:
        """Add an event: its message, a stub of what it changes, and a test."""
        _write(lambda: add_event(folder, name, of), _TEST, as_json=as_json)

    @add.command()
    def view(
        name: Annotated[str, typer.Argument(help="A noun, such as PlantCare.")],
        *,
        of: _Of = "",
        folder: _Folder = Path(),
        as_json: Json = False,
    ) -> None:
        """Add a view with a row for each of an aggregate: its message, a stub of its projection, its table, a test."""
        _write(lambda: add_view(folder, name, of), _TEST, as_json=as_json)

    @add.command()
    def query(
        name: Annotated[str, typer.Argument(help="GetPlantCare, WatchPlantCare or ListPlantCares.")],
        *,
        view: Annotated[str, typer.Option(help="The view that it reads; by default what its name says.")] = "",
        folder: _Folder = Path(),
        as_json: Json = False,
    ) -> None:
        """Add a query of a view: a row by its id (Get…), a row's states (Watch…), or pages of rows (List…)."""
        _write(lambda: add_query(folder, name, view), _TEST, as_json=as_json)

    app.add_typer(add, name="add")


_TEST = ("make test",)


def _write(write: Callable[[], Written], following: Sequence[str], *, as_json: bool) -> None:
    try:
        written = write()
    except CannotWrite as refused:
        for problem in refused.problems:
            complain(problem)
        raise typer.Exit(WRONG_USAGE) from refused
    if as_json:
        fields: dict[str, Any] = {"folder": str(written.folder), "written": written.files, "changed": written.changed}
        print_json(fields | {"next": following})
        return
    for path in written.files:
        typer.echo(f"wrote   {written.folder / path}")
    for path in written.changed:
        typer.echo(f"changed {written.folder / path}")
    typer.echo("\nNext:\n" + "\n".join(f"  {it}" for it in following))
    if tests := [it for it in written.files if following is _TEST and it.startswith("tests/")]:
        typer.echo(f"{', '.join(tests)} fails until the stubs are written, and says what to write.")
