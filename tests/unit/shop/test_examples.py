import json
import shlex

from commerce.command.v1.command_service_pb2 import PlaceOrderRequest
from shop import examples, sample


def test_the_lines_name_things_of_the_sample() -> None:
    _, get, place, _, _ = examples.lines("127.0.0.1:1", "127.0.0.1:2", with_sample=True)
    assert sample.identity("order", 1) in get
    assert sample.identity("customer", 1) in place
    assert sample.identity("product", 1) in place


def test_the_requests_are_json_that_a_shell_passes_on_whole() -> None:
    _, get, _, read, sales = examples.lines("127.0.0.1:1", "127.0.0.1:2", with_sample=True)
    for line in (get, read):
        words = shlex.split(line)
        assert "order_id" in json.loads(words[words.index("-d") + 1])
    words = shlex.split(sales)
    dates = json.loads(words[words.index("-d") + 1])
    requests = [it for stage in sample.generate() for it in stage.requests]
    placed = [it.placed_at.ToJsonString() for it in requests if isinstance(it, PlaceOrderRequest)]
    assert any(dates["start_date"] <= it[:10] <= dates["end_date"] for it in placed), "there is something to see"


def test_without_the_sample_there_is_only_the_line_that_needs_no_data() -> None:
    [line] = examples.lines("127.0.0.1:1", "127.0.0.1:2", with_sample=False)
    assert line.endswith("-plaintext 127.0.0.1:1 list")
