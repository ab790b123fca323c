"""docs/adding-a-feature.md, followed word by word in a copy of the tree."""

import json
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guide import Step, Tree, checking, steps_of
from tests.support.up import Up

ROOT = Path(__file__).parents[2]
STEPS = steps_of((ROOT / "docs" / "adding-a-feature.md").read_text())
PRODUCT = "b0000000-0000-4000-8000-00000000beef"
# What `make check` runs, but for the rules that no step of the page is named by, and for the fixtures, which no rule
# uses: it is run for each step.
CHECK = (
    *("--quiet", "--tb=short", "--no-header", "--continue-on-collection-errors", "--noconftest"),
    # No rule uses it either, and it is imported at the end.
    *("-p", "no:hypothesispytest"),
    *(f"tests/architecture/test_{rules}.py" for rules in ("contract", "examples", "repository", "stubs")),
    # It starts three processes, and a feature has no metrics of its own.
    "--deselect=tests/architecture/test_repository.py::test_the_metrics_page_is_what_the_services_have",
)


@pytest.fixture(scope="module")
def followed() -> Iterator[Tree]:
    """The tree when all steps are done."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        tree = Tree.copy(ROOT, Path(folder) / "tree")
        for step in STEPS:
            tree.do(step)
        yield tree


def test_the_page_leads_to_a_feature_that_is_served_projected_and_queried(followed: Tree) -> None:
    page = (followed.folder / "docs" / "examples.md").read_text()
    assert '"ratingCount": "1"' in page, "make examples wrote what the new query answered"


def test_products_that_were_there_before_the_feature_have_the_new_view(followed: Tree) -> None:
    """The release before adds a product; the one with the feature, on the same data, shows its ratings."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        data = Path(folder) / "data"
        before = Up(data, "--no-sample", forks=True)
        try:
            price = {"minor_units": 100, "currency_code": "EUR"}
            call(before.wait_until_up(), "Command", "AddProduct", product_id=PRODUCT, name="Cup", price=price)
            assert before.end(signal.SIGINT) == 0
        finally:
            before.clean_up()
        after = Up(data, "--no-sample", tree=followed.folder, environment=followed.environment())
        try:
            rated = call(after.wait_until_up(), "Command", "RateProduct", product_id=PRODUCT, stars=4)
            fresh = {"at_least_as_fresh": rated["receipt"]["consistencyToken"], "max_wait": "20s"}
            found = call(after, "Query", "GetProductRating", product_id=PRODUCT, consistency=fresh)
            assert found["productRating"] == {"productId": PRODUCT, "ratingCount": "1", "starTotal": "4"}
            assert after.end(signal.SIGINT) == 0
        finally:
            after.clean_up()


def call(up: Up, service: str, method: str, **request: Any) -> dict[str, Any]:
    """By reflection, as a person does: the stubs here know nothing of the feature."""
    port = {"Command": up.ports.command, "Query": up.ports.query}[service]
    name = f"commerce.{service.lower()}.v1.{service}Service/{method}"
    said, code = Tree(ROOT).run("grpcurl", "-plaintext", "-d", json.dumps(request), f"127.0.0.1:{port}", name)
    assert code == 0, said
    answer: dict[str, Any] = json.loads(said)
    return answer


def test_make_check_names_each_step_that_was_forgotten(followed: Tree) -> None:
    needed = [step for step in STEPS if followed.changed[step.name]]
    assert len(needed) > 10
    with checking(followed) as run:
        silent = [found for step in needed if (found := complaint(followed, step, run))]
    assert not silent, "\n\n".join(silent)


def test_what_the_page_leads_to_passes_make_lint(followed: Tree) -> None:
    # The last of them: beside the tests, CI's own lint is under way, and has found out by now what is taken here.
    followed.take_what_mypy_knows(ROOT)
    said, code = followed.run("make", "lint")
    assert code == 0, said


def complaint(followed: Tree, step: Step, run: Callable[..., tuple[str, int]]) -> str:
    """What the checks say when this step alone was forgotten, if they do not name it."""
    with followed.without(step.name):
        said, code = run(*CHECK)
    if code != 0 and any(name in said for name in names_of(step)):
        return ""
    return f"{step.name} (line {step.line}): {said[-3000:]}"


def names_of(step: Step) -> list[str]:
    """How a forgotten step may be named: its command, its file, its module, or the folder that lacks the file."""
    if step.kind == "sh":
        return [f"run {step.name}"]
    path = Path(step.name)
    module = ".".join(path.with_suffix("").parts)
    parent, _, name = module.rpartition(".")
    new = [f"'{name}' from '{parent}'", str(path.parent)] if step.kind == "python" else []
    # buf names what is not there by the message.
    new += [f"cannot find `{it}`" for it in re.findall(r"^\+message (\w+)", step.text, re.MULTILINE)]
    return [step.name, f"'{module}'", *new]
