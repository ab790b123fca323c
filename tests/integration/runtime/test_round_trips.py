"""What counts as a round trip. It goes by names that psycopg gives its steps, which its next release may change."""

from collections.abc import Callable

from sqlalchemy import text

from tandem.runtime.database import create_database_engine, pipelined
from tandem.runtime.round_trips import ROUND_TRIPS
from tandem.runtime.settings import DatabaseSettings
from tests.support.stack import Databases

POOL = "tandem-round-trips"


def test_round_trips_are_what_is_waited_for(databases: Databases) -> None:
    engine = create_database_engine(DatabaseSettings(url=databases.create()), name=POOL, pool_size=1)
    with engine.connect() as connection:

        def taken_by(what: Callable[[], object]) -> int:
            before = ROUND_TRIPS.numbers()[POOL]
            what()
            return ROUND_TRIPS.numbers()[POOL] - before

        def together() -> None:
            with pipelined(connection) as driver:
                driver.execute("BEGIN")
                cursors = [driver.execute("SELECT 1"), driver.execute("SELECT 2")]
            assert [it.fetchone() for it in cursors] == [(1,), (2,)]

        def with_an_answer_in_between() -> None:
            with pipelined(connection) as driver:
                assert driver.execute("SELECT 1").fetchone() == (1,)
                driver.execute("COMMIT")

        assert taken_by(together) == 1
        assert taken_by(with_an_answer_in_between) == 2
        assert taken_by(lambda: connection.execute(text("SELECT 1")).all()) == 1
        assert taken_by(connection.commit) == 1
        assert taken_by(connection.commit) == 0, "nothing was to be committed"
    before = ROUND_TRIPS.numbers()[POOL]
    engine.dispose()
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert ROUND_TRIPS.numbers()[POOL] > before, "what a connection counted stays when it has ended"
    engine.dispose()
