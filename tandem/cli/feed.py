"""`tandem feed …`: the feed's archive and its epoch. Both are changed where the schema's owner is, as by migrations."""

from typing import Annotated

import typer

from tandem.cli.services import run_action

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; what is logged goes to standard error.")]


def commands(command_module: str) -> typer.Typer:
    """command_module: of the command server, whose settings say where the database and the archive are."""
    app = typer.Typer(no_args_is_help=True, help="The feed's archive, its oldest events in files; and its epoch.")

    def run(action: str, *, as_json: bool) -> None:
        code = run_action(command_module, action, *(["--json"] if as_json else [])).returncode
        if code != 0:
            raise typer.Exit(code)

    @app.command()
    def archive(
        *,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be moved, and change nothing.")
        ] = False,
        as_json: _Json = False,
    ) -> None:
        """Move the feed's oldest partitions into files, and drop them from the write database.

        Those whose newest event is older than TANDEM_COMMAND_ARCHIVE__KEEP_DAYS go to TANDEM_COMMAND_ARCHIVE__FOLDER.
        Each file is read back and compared before its events are dropped. Runs as the schema's owner, beside running
        services; it may be ended at any time, and goes on where it was. Projectors need the folder too, before:
        TANDEM_PROJECTOR_ARCHIVE__FOLDER.
        """
        run("archive-plan" if dry_run else "archive", as_json=as_json)

    @app.command("verify-archive")
    def verify_archive(*, as_json: _Json = False) -> None:
        """Read the whole archive, and compare it with its checksums and the feed. Exit code 1 when anything differs."""
        run("verify-archive", as_json=as_json)

    @app.command("begin-epoch")
    def begin_epoch(*, as_json: _Json = False) -> None:
        """Name the feed anew, after the write database lost commits in a failover or was restored without a ledger.

        Tokens from before are refused then, and projectors make the views right. After a restore with ledgers, `tandem
        restore` does it. Runs as the schema's owner, beside running services.
        """
        run("begin-epoch", as_json=as_json)

    return app
