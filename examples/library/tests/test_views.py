"""The library's views: the row after events."""

from lending.v1 import events_pb2 as events
from lending.v1.queries_pb2 import BookDetails, LoanSummary
from library.events import EVENTS
from library.projector import VIEWS

from tandem.commands.rules import timestamp
from tandem.testing.rules import NOW
from tandem.testing.views import view

BOOK, MEMBER, LOAN = [f"{it}0000000-0000-4000-8000-000000000001" for it in "abc"]
AT = timestamp(NOW)
ADDED = events.BookAdded(book_id=BOOK, version=1, title="Emma")
LENT = events.BookLent(book_id=BOOK, version=2, loan_id=LOAN, member_id=MEMBER, lent_at=AT)
RETURNED = events.BookReturned(book_id=BOOK, version=3, loan_id=LOAN, member_id=MEMBER, returned_at=AT)


def test_a_book_shows_who_has_it() -> None:
    details = view(VIEWS.projections["book_details"], EVENTS)
    details.after(ADDED).shows(BookDetails(book_id=BOOK, version=1, title="Emma"))
    shown = BookDetails(book_id=BOOK, version=2, title="Emma", member_id=MEMBER, loan_count=1)
    details.after(ADDED, LENT).shows(shown)
    details.after(ADDED, LENT, RETURNED).shows(BookDetails(book_id=BOOK, version=3, title="Emma", loan_count=1))


def test_a_loan_ends() -> None:
    loan = view(VIEWS.projections["loan_summary"], EVENTS)
    shown = LoanSummary(loan_id=LOAN, book_id=BOOK, member_id=MEMBER, lent_at=AT)
    loan.after(LENT).shows(shown)
    shown.returned_at.CopyFrom(AT)
    loan.after(LENT, RETURNED).shows(shown)
