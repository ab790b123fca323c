"""`python -m library`: the command `tandem`, for this domain."""

from lending.v1 import events_pb2, queries_pb2

from tandem.cli.domain import Domain
from tandem.cli.main import application

LIBRARY = Domain(
    modules={
        "command": "library.command_server",
        "projector": "library.projector",
        "query": "library.query_server",
    },
    messages=(events_pb2.DESCRIPTOR, queries_pb2.DESCRIPTOR),
    histories={"book": "book_details"},
)


def main() -> None:
    application(LIBRARY)()


if __name__ == "__main__":
    main()
