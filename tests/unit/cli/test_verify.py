"""What `tandem verify` shows of a comparison, while it is under way and at its end."""

from io import StringIO

from rich.console import Console

from commerce.audit.v1 import audit_service_pb2 as audit
from tandem.cli.verify import Difference, Report, Subject, as_tables, problems, progress


def difference(number: int = 1, *, repaired: bool = False) -> Difference:
    return Difference("order_details", f"key-{number}", "row", 1234, ["value", "price"], "", repaired)


def shown(report: Report) -> list[list[str]]:
    text = StringIO()
    Console(file=text, width=200).print(as_tables(report))
    return [line.split() for line in text.getvalue().splitlines()]


def test_progress_says_which_subject_and_how_much_of_the_feed_is_read() -> None:
    answer = audit.VerifyResponse(subject="order", keys=1200, events=3400, position=500, until=2000)
    assert progress(answer) == "order: 1,200 keys compared, 3,400 events; 25 % of the feed read"
    assert progress(audit.VerifyResponse(subject="order")).endswith("begins")


def test_what_is_the_same_is_well() -> None:
    report = Report([Subject("order", keys=8, events=30)])
    assert report.well
    assert shown(report)[1] == ["order", "8", "30", "0", "0", "0"]
    assert problems(report) == []


def test_each_difference_is_named_with_what_differs() -> None:
    report = Report([Subject("order_details", 8, 30, differences=[difference(repaired=True)])])
    assert not report.well, "also where it was repaired: somebody has to know"
    assert ["order_details", "key-1", "row", "1,234", "value,", "price", "yes"] in shown(report)
    assert problems(report) == []
    report.subjects[0].differences.append(difference(2))
    assert problems(report) == ["something differs: docs/runbook.md says what to do"]


def test_of_thousands_the_first_are_shown_and_the_others_counted() -> None:
    report = Report([Subject("order_details", differences=[difference(number) for number in range(2050)])])
    assert shown(report)[-1] == ["and", "2,000", "more;", "--json", "has", "all"]


def test_what_could_not_be_compared_is_said() -> None:
    report = Report([Subject("order", problem="the feed is away"), Subject("customer", not_compared=3)])
    assert not report.well
    assert problems(report) == [
        "order was not compared to its end: the feed is away",
        "3 keys tell of people whose erasure is under way: ask again when it is over",
    ]
