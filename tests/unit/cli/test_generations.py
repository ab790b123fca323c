"""What `tandem rebuild` and `tandem generations` say."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from rich.console import Console

from tandem.cli import generations
from tandem.cli.generations import Operator, Refused, in_words, progress_table, refuse_wrong, serve


def generation(view: str, position: int, served: int = 10_000, **more: Any) -> dict[str, Any]:
    return {"view": view, "state": "filling", "position": position, "served_position": served, "error": "", **more}


def test_the_progress_has_the_rate_of_the_last_looks_and_the_time_that_is_left() -> None:
    first = {"order_details": generation("order_details", 1000)}
    last = {
        "order_details": generation("order_details", 3000),
        "product_card": generation("product_card", 0, error="somebody locks its table"),
    }
    console = Console(width=120)
    with console.capture() as said:
        console.print(progress_table([(100.0, 10_000, first), (104.0, 10_000, last)]))
    [_, orders, cards] = said.get().splitlines()
    assert orders.split() == ["order_details", "filling", "30%", "500", "0:14"]
    assert cards.split() == ["product_card", "filling", "0%", "0", "somebody", "locks", "its", "table"]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "12,345 rows, all the same"),
        ({"changed_count": 2, "added_count": 1}, "12,345 rows, 2 changed, 1 added"),
    ],
)
def test_a_comparison_says_what_differs(counts: dict[str, int], words: str) -> None:
    same = {"row_count": 12_345, "changed_count": 0, "missing_count": 0, "added_count": 0}
    assert in_words(same | counts) == words


class Knows(Operator):
    def __init__(self) -> None:
        """It asks nobody."""

    def views(self) -> list[str]:
        return ["order_details", "product_card"]

    def generations(self) -> tuple[int, dict[str, dict[str, Any]]]:
        return 10, {"product_card": generation("product_card", 5)}


def test_everything_that_is_wrong_is_named_before_anything_is_begun() -> None:
    refuse_wrong(Knows(), ["order_details"])
    with pytest.raises(Refused, match="name the views"):
        refuse_wrong(Knows(), [])
    with pytest.raises(Refused) as refused:
        refuse_wrong(Knows(), ["orders", "order_details", "product_card"])
    assert "orders is no view; there are order_details, product_card" in str(refused.value)
    assert "product_card has another generation already (filling)" in str(refused.value)


class NotAnswered(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self.code: Callable[[], grpc.StatusCode] = lambda: code


class Says(Operator):
    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        """answers: of one view's other generation, one after the other; the last one stays."""
        self.answers = list(answers)

    def generations(self) -> tuple[int, dict[str, dict[str, Any]]]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return 10, {"product_card": answer}

    def call(self, rpc: str, **fields: Any) -> None:
        assert (rpc, fields) == ("SwitchGeneration", {"view": "product_card"})


def test_while_an_exchange_waits_it_is_said_why_and_a_projector_may_be_away_for_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generations, "_LOOK_SECONDS", 0.0)
    waiting = generation("product_card", 10) | {"state": "ready", "error": "somebody locks its table"}
    away = NotAnswered(grpc.StatusCode.UNAVAILABLE)
    serve(Says(waiting, waiting, away, waiting, away, waiting | {"state": "kept", "error": ""}), ["product_card"])
    said = capsys.readouterr()
    assert said.err == "product_card waits: somebody locks its table\n"
    assert said.out == "served now: product_card\n"
    monkeypatch.setattr(generations, "_AWAY_SECONDS", 0.0)
    with pytest.raises(NotAnswered):
        serve(Says(waiting, waiting, away), ["product_card"])
    with pytest.raises(Refused, match="is filling: it must be ready"):
        serve(Says(waiting | {"state": "filling"}), ["product_card"])
