"""`tandem health`: asks one server how it is, for probes that a container runs itself.

Kubernetes' own gRPC probe speaks no TLS, and Compose has none.
"""

from typing import Annotated

import grpc
import typer

from tandem.cli import access
from tandem.cli.calls import in_words
from tandem.cli.output import FAILED, Json, fail, print_json
from tandem.cli.services import says_it_serves


def add_to(app: typer.Typer) -> None:
    @app.command()
    def health(
        address: Annotated[str, typer.Argument(help="Address of a server, such as 127.0.0.1:50052.")],
        *,
        service: Annotated[
            str, typer.Option(help="liveness, or a service's full name; by default readiness of the whole server.")
        ] = "",
        timeout: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds to wait for the answer.")] = 3.0,
        as_json: Json = False,
    ) -> None:
        """Ask one server for its health; exit code 1 where it does not serve or does not answer."""
        with access.connect(address) as channel:
            try:
                serves = says_it_serves(channel, timeout, service)
            except grpc.RpcError as error:
                fail(f"{address}: {in_words(error)}")
        health = "serving" if serves else "not serving"
        if as_json:
            print_json({"address": address, "service": service, "health": health})
        else:
            typer.echo(health)
        if not serves:
            raise typer.Exit(FAILED)
