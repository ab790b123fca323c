"""What the `tandem` command is told of a domain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from tandem.cli.sample import Stage


@dataclass(frozen=True)
class Domain:
    """What the `tandem` command is told of a domain: its three services, and what there is to try.

    modules: what Python runs as each service, by section: command, query and projector.
    projections: the service that the projector answers ListProjections with. receipts: the one that the command server
        answers GetReceipt with.
    histories: the view that shows an aggregate, by the aggregate's name. rows: the contract's file with the views'
        messages.
    audit: the service that command servers and projectors answer Verify with.
    mesh: the file that Envoy is started with.
    commands: the stub that takes the sample's commands. sample: makes the sample.
    examples: shell lines to try, given the addresses of the command server and the query server, and whether the sample
        is loaded.
    """

    modules: Mapping[str, str]
    projections: ServiceDescriptor
    audit: ServiceDescriptor
    receipts: ServiceDescriptor
    histories: Mapping[str, str]
    rows: FileDescriptor
    mesh: Path
    commands: Callable[[grpc.Channel], Any]
    sample: Callable[[], Sequence[Stage]]
    examples: Callable[[str, str, bool], Sequence[str]]
