"""A view's rows in a search engine, as projector and query servers both see them: what is put there, and how it is
reached. `search_engine.py` is the engine's client.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from sqlalchemy import Table

from tandem.feed.token import Token
from tandem.runtime.settings import Block, is_this_machine

MOST_FOUND = 10_000
"""Documents that one search may find: an engine's own limit, unless it is told otherwise."""


class EngineAway(Exception):
    """The engine does not answer, or not as it should; the message says what it did."""


class IndexGone(EngineAway):
    """The index is not there: it was deleted, or the engine has come back without it."""


class SearchRefused(Exception):
    """The engine takes all searches but this one."""


class Document(NamedTuple):
    """id: the row's, in 32 hexadecimal digits. fields: none of a row that is gone, so that its version stays known."""

    id: str
    version: int
    fields: dict[str, Any]


class Written(NamedTuple):
    """How many documents the engine took, and how many it refused since it has a later version of them."""

    taken: int
    refused: int


class SearchEngineSettings(Block):
    """A search engine that speaks Elasticsearch's REST protocol: OpenSearch, or Elasticsearch."""

    url: str = Field(description="https://search.internal:9200; http:// without a password, or on this machine")
    user: str = Field("", description="Who we are to it (basic authentication); empty for nobody")
    password_file: Path | None = Field(None, description="A file that holds the password")
    ca_file: Path | None = Field(
        None, description="PEM file with the authority of its certificate; without one the system's are taken"
    )
    prefix: str = Field(
        "tandem",
        pattern="^[a-z][a-z0-9-]{0,39}$",
        description="What the names of the indexes begin with: another one for each read database that shares an"
        " engine, and the same for its projectors and query servers",
    )
    timeout: float = Field(1.0, gt=0, le=60, description="Seconds for connecting to it and for each answer to a search")
    write_timeout: float = Field(
        10.0,
        gt=0,
        le=300,
        description="Seconds for each answer to the projector, which stores hundreds of rows at once",
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parsed = urlsplit(url)
        if parsed.scheme not in {"http", "https"} or not parsed.hostname:
            raise ValueError("must look like https://host:port")
        if parsed.username or parsed.password:
            raise ValueError("must not hold a password: set user and password_file")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _keeps_the_password(self) -> Self:
        if bool(self.user) != (self.password_file is not None):
            raise ValueError("set user and password_file, or neither")
        url = urlsplit(self.url)
        if self.user and url.scheme == "http" and not is_this_machine(url.hostname or ""):
            raise ValueError("url must begin with https://: whoever is in between would read the password")
        return self


@dataclass(frozen=True)
class SearchIndex:
    """What a search engine has of a view: a document a row.

    table: the view's. fields: of a document, each as SQL that makes it of the columns of a row: text, a number, a truth
    value, or an array of them. mappings: of these fields, as the engine takes them.
    """

    table: Table
    fields: Mapping[str, str]
    mappings: Mapping[str, Any]

    @property
    def source(self) -> str:
        """The view."""
        return str(self.table.name)

    @property
    def view(self) -> str:
        """The index by name, where views are called by theirs: in `projection`, announcements and metrics."""
        return f"{self.table.name}_index"

    @property
    def body(self) -> dict[str, Any]:
        """What the engine is told of an index. It is refreshed by whoever writes to it."""
        return {
            "settings": {"index": {"refresh_interval": "-1"}},
            "mappings": {"dynamic": False, "_source": {"enabled": False}, "properties": dict(self.mappings)},
        }

    def name(self, prefix: str, at: Token) -> str:
        """What the engine calls the index of a view's generation, in an epoch of the feed.

        Positions of one epoch are versions of documents. Another generation may have other rows at the same positions,
        and so has a release that makes other documents of them.
        """
        made_of = [at.epoch.hex, at.generation, dict(self.fields), self.body]
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        return f"{prefix}-{self.view}-{digest[:16]}"
