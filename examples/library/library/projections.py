"""What each event changes in the views: pure functions of a row and an event."""

from lending.v1 import events_pb2 as events
from lending.v1.queries_pb2 import BookDetails, LoanSummary

from library import views
from tandem.projection.projection import Projection


def added(_book: BookDetails | None, event: events.BookAdded) -> BookDetails:
    return BookDetails(book_id=event.book_id, version=event.version, title=event.title)


def lent(book: BookDetails, event: events.BookLent) -> BookDetails:
    book.member_id = event.member_id
    book.loan_count += 1
    book.version = event.version
    return book


def returned(book: BookDetails, event: events.BookReturned) -> BookDetails:
    book.member_id = ""
    book.version = event.version
    return book


def loan_began(_loan: LoanSummary | None, event: events.BookLent) -> LoanSummary:
    return LoanSummary(loan_id=event.loan_id, book_id=event.book_id, member_id=event.member_id, lent_at=event.lent_at)


def loan_ended(loan: LoanSummary, event: events.BookReturned) -> LoanSummary:
    loan.returned_at.CopyFrom(event.returned_at)
    return loan


PROJECTIONS = (
    Projection(
        table=views.book_details,
        message=BookDetails,
        key_field="book_id",
        rules={"book_added": added, "book_lent": lent, "book_returned": returned},
        begins=frozenset({"book_added"}),
        logged=True,
    ),
    Projection(
        table=views.loan_summary,
        message=LoanSummary,
        key_field="loan_id",
        rules={"book_lent": loan_began, "book_returned": loan_ended},
        begins=frozenset({"book_lent"}),
        scope="member_id",
    ),
)
