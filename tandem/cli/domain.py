"""What the `tandem` command is told of a domain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from tandem.cli.sample import Stage
from tandem.cli.tables import Table
from tandem.services.v1.audit_service_pb2 import DESCRIPTOR as AUDIT
from tandem.services.v1.projection_service_pb2 import DESCRIPTOR as PROJECTIONS
from tandem.services.v1.reaction_service_pb2 import DESCRIPTOR as REACTIONS
from tandem.services.v1.receipt_service_pb2 import DESCRIPTOR as RECEIPTS


@dataclass(frozen=True)
class Domain:
    """What the `tandem` command is told of a domain: its three services, and what there is to try.

    modules: what Python runs as each service, by section: command, query and projector, and relay where there is
        one. A small domain says no more.
    messages: the files of the contract with the views' messages and the events, which `history` and `why` show.
    histories: the view that shows an aggregate, by the aggregate's name; a view's own name does as well.
    projections: the service that the projector answers ListProjections with. receipts: the one that the command server
        answers GetReceipt with, and reactions: ListReactions. audit: the one that both answer Verify with. For a
        contract that has its own.
    mesh: the file that Envoy is started with; without it there is no `up --mesh`.
    pages: the folder of what Envoy serves to browsers, as built.
    sample: makes the sample that `up` loads. commands: the stub that takes its commands.
    tables: what `import` brings in, each behind those that it needs. queries: the stub that lists what is there then.
    examples: shell lines to try, given the addresses of the command server and the query server, and whether the sample
        is loaded.
    """

    modules: Mapping[str, str]
    messages: Sequence[FileDescriptor] = ()
    histories: Mapping[str, str] = field(default_factory=dict)
    projections: ServiceDescriptor = PROJECTIONS.services_by_name["ProjectionService"]
    audit: ServiceDescriptor = AUDIT.services_by_name["AuditService"]
    receipts: ServiceDescriptor = RECEIPTS.services_by_name["ReceiptService"]
    reactions: ServiceDescriptor = REACTIONS.services_by_name["ReactionService"]
    mesh: Path | None = None
    pages: Path | None = None
    commands: Callable[[grpc.Channel], Any] | None = None
    queries: Callable[[grpc.Channel], Any] | None = None
    sample: Callable[[], Sequence[Stage]] | None = None
    tables: Sequence[Table] = ()
    examples: Callable[[str, str, bool], Sequence[str]] = lambda *_: ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if (self.sample is None) != (self.commands is None):
            raise ValueError("a sample needs the stub that takes its commands, and the stub a sample")
        if self.tables and (self.commands is None or self.queries is None):
            raise ValueError("tables to import need the stubs that take their commands and list what is there")
