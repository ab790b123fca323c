"""Books: who has them."""

from typing import NamedTuple

from google.protobuf.message import Message
from lending.v1 import commands_pb2 as commands
from lending.v1 import events_pb2 as events
from sqlalchemy import BigInteger, Column, Table, Text, Uuid

from library.members import MEMBERS
from tandem.commands.domain import Command, change, change_fields, rule
from tandem.commands.rules import Id, id_of, must_be_new, refusal, timestamp
from tandem.commands.write_model import Aggregate, Keys, States
from tandem.feed.table import metadata
from tandem.runtime.checker import is_uuid


class Book(NamedTuple):
    """member_id, loan_id: of the loan; None while the book is there."""

    id: Id
    version: int
    title: str
    member_id: Id | None = None
    loan_id: Id | None = None


BOOKS = Aggregate(
    "book",
    Table(
        "book",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("version", BigInteger, nullable=False),
        Column("title", Text, nullable=False),
        Column("member_id", Uuid, nullable=True),
        Column("loan_id", Uuid, nullable=True),
    ),
    of_row=Book._make,
)


def with_member(request: commands.LendBookRequest, _book: Id, keys: Keys) -> None:
    """Who lends a book reads the member too."""
    if is_uuid(request.member_id):
        keys[MEMBERS].add(id_of(request.member_id))


@rule(BOOKS)
def add_book(request: commands.AddBookRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[BOOKS].get(command.subject_id), "book", command.subject_id)
    return [events.BookAdded(book_id=command.subject_id, version=1, title=request.title)]


@rule(BOOKS, keys=with_member)
def lend_book(request: commands.LendBookRequest, command: Command, states: States) -> list[Message]:
    book = BOOKS.current(states, request, command.subject_id)
    if book.member_id is not None:
        raise refusal("BOOK_LENT", f"books/{book.id}", "somebody has the book")
    member = states[MEMBERS].get(id_of(request.member_id))
    if member is None or member.erased:
        raise refusal("MEMBER_UNKNOWN", f"members/{request.member_id}", "there is no such member")
    return [
        events.BookLent(
            book_id=book.id,
            version=book.version + 1,
            # The command's own id is the loan's: a rule takes none at random.
            loan_id=command.request_id,
            member_id=member.id,
            lent_at=timestamp(command.now),
        )
    ]


@rule(BOOKS)
def return_book(request: commands.ReturnBookRequest, command: Command, states: States) -> list[Message]:
    book = BOOKS.current(states, request, command.subject_id)
    if book.member_id is None:
        raise refusal("BOOK_NOT_LENT", f"books/{book.id}", "nobody has the book")
    return [
        events.BookReturned(
            book_id=book.id,
            version=book.version + 1,
            loan_id=book.loan_id,
            member_id=book.member_id,
            returned_at=timestamp(command.now),
        )
    ]


@change(BOOKS)
def book_added(states: States, event: events.BookAdded) -> None:
    states[BOOKS][event.book_id] = Book(event.book_id, event.version, event.title)


@change(BOOKS)
def book_lent(states: States, event: events.BookLent) -> None:
    BOOKS.change(states, event, member_id=event.member_id, loan_id=event.loan_id)


change_fields(BOOKS, events.BookReturned, member_id=None, loan_id=None)
