"""The library's views: their tables, as migrations/read makes them, and what readers need to know of them."""

from sqlalchemy import BigInteger, Column, DateTime, Index, Uuid

from tandem.read_store.tables import view_table

REVISION = "0001"
"""The migration that a reader of these tables needs."""

book_details = view_table("book_details")
loan_summary = view_table(
    "loan_summary",
    Column("member_id", Uuid, nullable=False),
    Column("lent_at", DateTime(timezone=True), nullable=False),
    Column("lent_position", BigInteger, nullable=False),
)
Index(
    "loan_summary_of_member",
    loan_summary.c.member_id,
    loan_summary.c.lent_at.desc(),
    loan_summary.c.lent_position.desc(),
)

VIEWS = {it.name: it for it in (book_details, loan_summary)}
CACHED_VIEWS = frozenset({"book_details"})
"""Those that are read by id. A list comes from an index of the read database."""
