"""docs/examples.md does what it says: the real grpcurl, in one shell, from the page's top to its end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tandem.testing.stack import up_to
from tests.support.examples import compare, examples_of, run, with_outputs
from tests.support.stack import Stack

PAGE = Path(__file__).parents[2] / "docs" / "examples.md"


def test_every_example_prints_what_the_page_says(
    new_stack: Callable[..., Stack], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    page = PAGE.read_text()
    examples = examples_of(page)
    stack = new_stack(cache_nodes=up_to(1))
    addresses = {
        "127.0.0.1:50051": stack.command_server.address,
        "127.0.0.1:50052": stack.query_server.address,
        "127.0.0.1:50053": stack.projector.address,
    }
    outcomes = run(examples, addresses, tmp_path)
    if pytestconfig.getoption("--write-examples"):
        PAGE.write_text(with_outputs(page, examples, outcomes))
        return
    wrong = [compare(example, outcome) for example, outcome in zip(examples, outcomes, strict=True)]
    assert not any(wrong), "\n\n".join(filter(None, wrong))
