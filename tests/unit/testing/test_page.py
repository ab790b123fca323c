"""The examples of docs/testing.md, run as they stand there."""

import asyncio
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "testing.md").read_text(encoding="utf-8")
NAMES: dict[str, Any] = {}
exec("".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), NAMES)


@pytest.mark.parametrize("example", [it for name, it in NAMES.items() if name.startswith("test_")])
def test_an_example_holds(example: Callable[[], Any]) -> None:
    if inspect.iscoroutinefunction(example):
        asyncio.run(example())
    else:
        example()


def test_the_failure_is_said_as_it_is_shown() -> None:
    [shown] = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    dear = type(NAMES["DEARER"])(minor_units=700, currency_code="EUR")
    command = NAMES["ChangePriceRequest"](product_id=NAMES["TEA"], price=NAMES["DEARER"])
    with pytest.raises(AssertionError, match=f"^{re.escape(shown)}$"):
        NAMES["RULES"].given(NAMES["ADDED"]).when(command).then(
            NAMES["PriceChanged"](product_id=NAMES["TEA"], version=2, price=dear)
        )
