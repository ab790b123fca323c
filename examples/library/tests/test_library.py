"""The library's three services on real stores: written, read, listed, watched, erased, and shown to operators."""

import json
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from lending.v1 import commands_pb2 as commands
from lending.v1 import queries_pb2 as queries
from lending.v1.commands_pb2_grpc import CommandServiceStub
from lending.v1.queries_pb2_grpc import QueryServiceStub
from library import command_server, views
from library.__main__ import LIBRARY
from typer.testing import CliRunner

from tandem.cli.main import application
from tandem.client import sync
from tandem.testing.stack import Stack, running_stack


class Session(sync.Session):
    commands = sync.Stub(CommandServiceStub)
    queries = sync.Stub(QueryServiceStub)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    migrations = {"write": command_server.MIGRATIONS, "read": views.MIGRATIONS}
    with running_stack(modules=LIBRARY.modules, migrations=migrations, views=len(views.VIEWS)) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[sync.Client[Session]]:
    addresses = {"commands": stack.command_server.address, "queries": stack.query_server.address}
    with sync.Client(Session, addresses) as it:
        yield it


def new_member(session: Session) -> str:
    registered: str = session.commands.RegisterMember(commands.RegisterMemberRequest(name="Ada Lovelace")).member_id
    return registered


def new_book(session: Session) -> str:
    added: str = session.commands.AddBook(commands.AddBookRequest(title="Emma")).book_id
    return added


def tandem(*words: str) -> str:
    """What `python -m library` prints."""
    done = CliRunner().invoke(application(LIBRARY), words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_who_writes_sees_it_by_id_and_in_the_list(client: sync.Client[Session]) -> None:
    session = client.session()
    member, book, loan = new_member(session), new_book(session), str(uuid.uuid4())
    lend = commands.LendBookRequest(request_id=loan, book_id=book, member_id=member)
    assert not session.commands.LendBook(lend).receipt.replayed
    assert session.queries.GetBook(queries.GetBookRequest(book_id=book)).book_details == queries.BookDetails(
        book_id=book, version=2, title="Emma", member_id=member, loan_count=1
    )
    assert session.commands.LendBook(lend).receipt.replayed, "once, however often it is sent"
    [listed] = session.queries.ListLoans(queries.ListLoansRequest(member_id=member)).loans
    assert (listed.loan_id, listed.book_id, listed.HasField("returned_at")) == (loan, book, False)
    session.commands.ReturnBook(commands.ReturnBookRequest(book_id=book))
    [listed] = session.queries.ListLoans(queries.ListLoansRequest(member_id=member)).loans
    assert listed.HasField("returned_at")


def test_a_book_is_watched(client: sync.Client[Session]) -> None:
    session = client.session()
    member, book = new_member(session), new_book(session)
    watch = session.queries.WatchBook(queries.WatchBookRequest(book_id=book), timeout=20)
    states = (it.book_details for it in watch if it.HasField("book_details"))
    assert next(states).member_id == ""
    session.commands.LendBook(commands.LendBookRequest(book_id=book, member_id=member))
    assert next(states).member_id == member
    watch.cancel()


def test_a_members_name_is_sealed_and_goes_with_the_member(stack: Stack, client: sync.Client[Session]) -> None:
    session = client.session()
    member = new_member(session)
    with psycopg.connect(stack.write_url, autocommit=True) as connection:
        stored = connection.execute("SELECT payload FROM tandem_write.event WHERE subject_id = %s", [member]).fetchall()
        assert len(stored) == 1
        assert b"Lovelace" not in stored[0][0]
        session.commands.EraseMember(commands.EraseMemberRequest(member_id=member))
        key = connection.execute("SELECT key FROM tandem_write.subject_key WHERE subject_id = %s", [member])
        assert key.fetchone() == (None,)


def test_operators_see_the_services_the_views_and_a_books_history(stack: Stack, client: sync.Client[Session]) -> None:
    session = client.session()
    request_id, book = str(uuid.uuid4()), str(uuid.uuid4())
    session.commands.AddBook(commands.AddBookRequest(request_id=request_id, book_id=book, title="Emma"))
    session.queries.GetBook(queries.GetBookRequest(book_id=book))
    at = [f"--projector-address={stack.projector.address}"]
    to_commands = f"--command-address={stack.command_server.address}"
    status = tandem("status", "--json", *at, to_commands, f"--query-address={stack.query_server.address}")
    assert {it["name"] for it in json.loads(status)["views"]} == set(views.VIEWS)
    history = tandem("history", "book", book, *at)
    assert "book_added" in history
    assert "Emma" in history
    why = tandem("why", request_id, *at, to_commands)
    assert "book_added" in why
