"""What a search engine is told of a view, and where it is."""

import dataclasses
import uuid
from pathlib import Path

import pytest
from pydantic import ValidationError

from shop.product_index import PRODUCT_INDEX
from tandem.feed.token import Token
from tandem.read_store.search_engine import SearchEngine
from tandem.read_store.search_index import SearchEngineSettings
from tandem.runtime.settings import SettingsError

AT = Token(uuid.UUID(int=1), 5, mark=3, generation=7)


def test_an_index_is_named_by_what_its_versions_are_of_and_what_its_documents_are() -> None:
    name = PRODUCT_INDEX.name("shop", AT)
    assert name.startswith("shop-product_search_index-")
    assert PRODUCT_INDEX.name("shop", dataclasses.replace(AT, position=6, mark=4)) == name
    other_fields = dataclasses.replace(PRODUCT_INDEX, fields={**PRODUCT_INDEX.fields, "added": "key"})
    others = {
        PRODUCT_INDEX.name("shop", dataclasses.replace(AT, epoch=uuid.UUID(int=2))),
        PRODUCT_INDEX.name("shop", dataclasses.replace(AT, generation=8)),
        other_fields.name("shop", AT),
        name,
    }
    assert len(others) == 4


def test_a_password_goes_to_nobody_in_between(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("open sesame\n")
    SearchEngineSettings(url="https://search.internal:9200", user="tandem", password_file=secret)
    SearchEngine(SearchEngineSettings(url="http://127.0.0.1:9200", user="tandem", password_file=secret)).close()
    for wrong in (
        {"url": "http://search.internal:9200", "user": "tandem", "password_file": secret},
        {"url": "https://search.internal:9200", "user": "tandem"},
        {"url": "https://tandem:secret@search.internal:9200"},
        {"url": "search.internal:9200"},
    ):
        with pytest.raises(ValidationError) as raised:
            SearchEngineSettings(**wrong)
        assert "secret@" not in str(raised.value)


def test_files_that_are_missing_are_wrong_settings(tmp_path: Path) -> None:
    none = tmp_path / "none"
    with pytest.raises(SettingsError, match="none"):
        SearchEngine(SearchEngineSettings(url="https://search.internal", user="tandem", password_file=none))
    with pytest.raises(SettingsError, match="search engine"):
        SearchEngine(SearchEngineSettings(url="https://search.internal", ca_file=none))
