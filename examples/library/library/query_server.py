"""`python -m library.query_server`: answers queries."""

import sys

from lending.v1.queries_pb2 import DESCRIPTOR, ListLoansRequest

from library import views
from tandem.queries.checker import QueryChecker
from tandem.queries.pages import KeysetList, Selection
from tandem.queries.server import QueryServerSettings, build_query_server
from tandem.runtime.program import main
from tandem.runtime.server import Application

LOANS_OF_MEMBER = KeysetList(
    views.loan_summary, time="lent_at", position="lent_position", equal=["member_id"], scope="member_id"
)


def loans(request: ListLoansRequest, check: QueryChecker) -> Selection:
    """The rows that the request selects; `check` collects what is wrong with it."""
    return Selection(LOANS_OF_MEMBER, equal=(check.key("member_id", request.member_id),))


def build(settings: QueryServerSettings) -> Application:
    # GetBook and WatchBook need no word here: they are read from the contract.
    return build_query_server(
        DESCRIPTOR.services_by_name["QueryService"],
        settings,
        views=views.VIEWS,
        revision=views.REVISION,
        cached=views.CACHED_VIEWS,
        lists=[loans],
    )


if __name__ == "__main__":
    sys.exit(main("library.query_server", QueryServerSettings, build, {}, "answer calls until SIGTERM"))
