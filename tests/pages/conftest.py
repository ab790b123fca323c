"""One stack and one browser for all tests of the pages."""

from collections.abc import Iterator

import pytest

from tests.support.pages import Pages, running_pages, why_no_pages
from tests.support.stack import Databases


@pytest.fixture(scope="package")
def pages(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    if why := why_no_pages():
        pytest.skip(why)
    with running_pages(databases, tmp_path_factory.mktemp("pages")) as pages:
        yield pages
