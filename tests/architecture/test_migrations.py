"""What docs/migrations.md says, so far as it can be seen in the migrations' text."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for home in ("command_server", "projector", "tandem/feed", "tandem/read_store")
    for path in (ROOT / home / "migrations/versions").glob("*.py")
)
# Tables of some rows.
SMALL = {"feed_head", "projection"}


def statements(path: Path, function: str | None = None) -> Iterator[str]:
    """All texts of a file, or of one of its functions, with {S}. for the schema."""
    tree: ast.AST = ast.parse(path.read_text())
    if function is not None:
        [tree] = [it for it in ast.walk(tree) if isinstance(it, ast.FunctionDef) and it.name == function]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield ast.unparse(node)


def found(path: Path, pattern: str, function: str | None = None) -> set[str]:
    return {match for it in statements(path, function) for match in re.findall(pattern, it)}


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def path(request: pytest.FixtureRequest) -> Path:
    it: Path = request.param
    return it


def new_tables(path: Path) -> set[str]:
    return found(path, r"CREATE TABLE (?:IF NOT EXISTS )?{S}\.(\w+)", "upgrade")


def test_no_migration_changes_an_event(path: Path) -> None:
    changed = found(path, r"(?:UPDATE|DELETE FROM|TRUNCATE) {S}\.(event)\b")
    # Sealing alone: an event that was opened again has the bytes of before.
    assert changed == ({"event"} if path.stem == "0003_personal_data" else set())


def test_rows_that_are_there_are_changed_in_steps(path: Path) -> None:
    changed = found(path, r"(?:UPDATE|DELETE FROM|INSERT INTO) {S}\.(\w+)", "upgrade")
    assert changed <= SMALL | new_tables(path), "call tandem.runtime.backfill.backfill"


def test_an_index_of_a_table_that_is_there_is_made_beside_who_writes(path: Path) -> None:
    of_tables = found(path, r"CREATE (?:UNIQUE )?INDEX \S+\s*(?:\\n\s*)?ON {S}\.({?\w+)", "upgrade")
    assert {it for it in of_tables if not it.startswith("{")} <= new_tables(path) | SMALL, (
        "call tandem.runtime.backfill.create_index"
    )


def test_no_migration_reads_a_whole_table_under_a_lock(path: Path) -> None:
    text = " ".join(statements(path, "upgrade"))
    if re.search(r"SET NOT NULL|ADD CONSTRAINT", text):
        assert "validate_constraint(" in path.read_text()
        assert "NOT VALID" in text


def test_names_that_the_version_before_uses_stay(path: Path) -> None:
    gone = found(path, r"RENAME|DROP COLUMN|DROP TABLE", "upgrade")
    # The first two say that the services of the version before are to be stopped first. The third one puts another
    # table in the place of the one that it renames.
    allowed = {"0003_personal_data", "0006_data_subjects_and_envelopes", "0016_receipts_by_period"}
    assert not gone or path.stem in allowed


def test_statements_are_bounded(path: Path) -> None:
    texts = list(statements(path, "upgrade"))
    if any(re.search(r"CREATE|ALTER|LOCK", it) for it in texts):
        assert any("SET LOCAL lock_timeout = " in it for it in texts)
