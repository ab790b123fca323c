from tandem.cli.live import Reading, describe
from tandem.cli.status import View, Views

VIEWS = Views(3120, (View("order_details", lag_events=0), View("product_card", lag_events=1500)))


def reading(
    at: float,
    commands: float | None = 0,
    hits: float | None = 0,
    misses: float | None = 0,
    views: Views | None = VIEWS,
) -> Reading:
    return Reading(at, commands, hits, misses, views)


def test_the_line_tells_rate_head_lag_and_hits() -> None:
    oldest = reading(0, commands=0, hits=10, misses=10)
    previous = reading(8, commands=100, hits=50, misses=20)
    now = reading(10, commands=2500, hits=100, misses=20)
    assert describe(oldest, previous, now) == (
        "commands/s 1,200 · feed head 3,120 · lag order_details 0, product_card 1,500 · cache hits 90 %"
    )


def test_the_first_reading_knows_no_rates() -> None:
    first = reading(0, commands=100, hits=5, misses=5)
    assert describe(first, first, first).startswith("commands/s - · feed head 3,120")
    assert describe(first, first, first).endswith("cache hits -")


def test_services_that_are_away_have_dashes() -> None:
    before, now = reading(0), reading(1, commands=None, hits=None, misses=None, views=None)
    assert describe(before, before, now) == "commands/s - · feed head - · lag - · cache hits -"


def test_totals_that_fell_belong_to_a_service_that_started_anew() -> None:
    before, now = reading(0, commands=500, hits=500), reading(1, commands=3, hits=3)
    assert "commands/s -" in describe(before, before, now)
    assert "cache hits -" in describe(before, before, now)


def test_without_reads_there_is_no_ratio() -> None:
    assert describe(reading(0), reading(1), reading(2)).endswith("cache hits -")
