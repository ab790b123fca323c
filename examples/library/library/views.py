"""The library's views: the contract says which there are, and their columns. migrations/read makes their tables."""

from pathlib import Path

from lending.v1.queries_pb2 import DESCRIPTOR
from sqlalchemy import Index

from tandem.read_store.contract import contract_views
from tandem.runtime.migrations import newest_revision

MIGRATIONS = Path(__file__).parent / "migrations/read"
REVISION = newest_revision(MIGRATIONS)
"""The migration that a reader of these tables needs."""

IN_CONTRACT = contract_views(DESCRIPTOR)
book_details = IN_CONTRACT.tables["book_details"]
loan_summary = IN_CONTRACT.tables["loan_summary"]
Index(
    "loan_summary_of_member",
    loan_summary.c.member_id,
    loan_summary.c.lent_at.desc(),
    loan_summary.c.lent_position.desc(),
)

VIEWS = {it.name: it for it in IN_CONTRACT.tables.values()}
CACHED_VIEWS = IN_CONTRACT.cached
