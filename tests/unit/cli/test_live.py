import pytest
from rich.console import Console, ConsoleDimensions

from tandem.cli.live import Reading, Totals, describe, screen
from tandem.cli.status import Report, ServiceHealth, View

VIEWS = (View("order_details", lag_events=0), View("product_card", lag_events=1500, lag_seconds=7300.0))
SERVICES = (ServiceHealth("command_server", "127.0.0.1:1", "serving"), ServiceHealth("projector", "x", "serving"))


def reading(
    at: float,
    *,
    commands: float | None = 0,
    hits: float | None = 0,
    misses: float | None = 0,
    head: int | None = 3120,
    views: tuple[View, ...] = VIEWS,
    services: tuple[ServiceHealth, ...] = SERVICES,
) -> Reading:
    return Reading(at, Report(services, head, views), totals=Totals(commands, hits, misses))


def test_the_line_tells_head_rates_hits_and_lag() -> None:
    readings = [
        reading(0, commands=0, hits=10, misses=10),
        reading(8, commands=100, hits=50, misses=20, head=2000),
        reading(10, commands=2500, hits=100, misses=20),
    ]
    assert describe(readings) == (
        "feed head 3,120 · events/s 560 · commands/s 1,200 · cache hits 90 % · lag order_details 0, product_card 1,500"
    )


def test_the_first_reading_knows_no_rates() -> None:
    line = describe([reading(0, commands=100, hits=5, misses=5)])
    assert line.startswith("feed head 3,120 · events/s - · commands/s - · cache hits -")


def test_services_that_are_away_are_named_and_have_dashes() -> None:
    away = (SERVICES[0], ServiceHealth("projector", "x", "unreachable"))
    now = reading(1, commands=None, hits=None, misses=None, head=None, views=(), services=away)
    assert describe([reading(0), now]) == (
        "projector unreachable · feed head - · events/s - · commands/s - · cache hits - · lag -"
    )


def test_totals_that_fell_belong_to_a_service_that_started_anew() -> None:
    line = describe([reading(0, commands=500, hits=500), reading(1, commands=3, hits=3)])
    assert "commands/s -" in line
    assert "cache hits -" in line


def test_without_reads_there_is_no_ratio_and_without_metrics_no_word_of_them() -> None:
    assert "cache hits - " in describe([reading(0), reading(1), reading(2)])
    assert "commands" not in describe([Reading(0, Report(SERVICES, 1, VIEWS))])


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_of_the_table_is_longer_than_the_terminal_and_the_names_stay_legible(width: int) -> None:
    stores = (ServiceHealth("PostgreSQL", "127.0.0.1:54320", "not serving"),)
    failed = View("subscription_details", "failed", 10**9, 10**9, 10**7, 10**5, error="[red]" + "long " * 99)
    now = Reading(0, Report(SERVICES, 2 * 10**9, (*VIEWS, failed)), stores)
    console = Console(width=width, height=24, color_system=None)
    with console.capture() as capture:
        console.print(screen([now], ConsoleDimensions(width, 24)))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24
    assert any("[red]" in line for line in lines), "what a service says has no markup"
    assert any(line.startswith(("subscription_details", "subs")) for line in lines)
    assert any("PostgreSQL does not run" in line for line in lines)
