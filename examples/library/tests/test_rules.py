"""The library's rules: given what happened, when a command comes, then that happens, or it is refused."""

from lending.v1 import commands_pb2 as commands
from lending.v1 import events_pb2 as events
from library.command_server import DOMAIN

from tandem.commands.rules import timestamp
from tandem.testing.rules import NOW, Rules, refused

RULES = Rules(DOMAIN)
BOOK, MEMBER, LOAN = [f"{it}0000000-0000-4000-8000-000000000001" for it in "abc"]
ADDED = events.BookAdded(book_id=BOOK, version=1, title="Emma")
REGISTERED = events.MemberRegistered(member_id=MEMBER, version=1, personal=events.PersonalData(name="Ada"))
LEND = commands.LendBookRequest(request_id=LOAN, book_id=BOOK, member_id=MEMBER)
LENT = events.BookLent(book_id=BOOK, version=2, loan_id=LOAN, member_id=MEMBER, lent_at=timestamp(NOW))
RETURN = commands.ReturnBookRequest(book_id=BOOK)


def test_a_book_is_lent() -> None:
    RULES.given(ADDED, REGISTERED).when(LEND).then(LENT)


def test_a_book_that_somebody_has_is_not_lent() -> None:
    again = commands.LendBookRequest(book_id=BOOK, member_id=MEMBER)
    RULES.given(ADDED, REGISTERED, LENT).when(again).then(refused("BOOK_LENT", of=f"books/{BOOK}"))


def test_a_book_comes_back_once() -> None:
    back = events.BookReturned(book_id=BOOK, version=3, loan_id=LOAN, member_id=MEMBER, returned_at=timestamp(NOW))
    RULES.given(ADDED, REGISTERED, LENT).when(RETURN).then(back)
    RULES.given(ADDED, REGISTERED, LENT, RETURN).when(RETURN).then(refused("BOOK_NOT_LENT", of=f"books/{BOOK}"))


def test_who_was_erased_gets_no_book() -> None:
    erase = commands.EraseMemberRequest(member_id=MEMBER)
    erased = events.MemberErased(member_id=MEMBER, version=2)
    RULES.given(REGISTERED).when(erase).then(erased)
    RULES.given(ADDED, REGISTERED, erased).when(LEND).then(refused("MEMBER_UNKNOWN", of=f"members/{MEMBER}"))


def test_a_member_has_a_name_and_a_book_a_title() -> None:
    RULES.when(commands.RegisterMemberRequest()).then(refused("INVALID_REQUEST", subjects={"name": "REQUIRED"}))
    RULES.when(commands.AddBookRequest()).then(refused("INVALID_REQUEST", subjects={"title": "REQUIRED"}))
