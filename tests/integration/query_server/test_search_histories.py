"""Searches that are answered from what is remembered, held against searches in full over random histories."""

import random
import uuid

import pytest
from sqlalchemy import text

from commerce.event.v1.event_pb2 import Event
from commerce.query.v1.query_service_pb2 import ProductSort, SearchProductsRequest
from commerce.query.v1.query_service_pb2 import SearchProductsResponse as Response
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from query_server.search.memory import SearchMemory
from query_server.search.synonyms import parse
from shop.views import VIEWS
from tests.integration.query_server.conftest import OpenSearcher, ReadSide
from tests.support import events
from tests.support.builders import usd
from tests.support.events import feed_events
from tests.support.projecting import PROJECTIONS, fold, upsert

WORDS = ("oak", "lamp", "brass", "chair", "crème", "lamps", "lam", "brsas", "chiar", "o", "zzz", "tea")
SORTS = ProductSort.values()
VALUES = ("red", "blue", "gré\u0301en")


@pytest.mark.parametrize("seed", range(6))
def test_remembered_and_full_searches_agree_over_any_history(
    read_side: ReadSide, opened: OpenSearcher, seed: int
) -> None:
    """Also while the views are at different positions, as they are when several projectors hold them."""
    dice = random.Random(seed)
    synonyms = parse("chair => lamp\noak lamp, brass")
    asked, fresh = opened(read_side, synonyms=synonyms), opened(read_side, SearchMemory(0), synonyms)
    history = RandomHistory(read_side, dice)
    requests: list[SearchProductsRequest] = []
    for _ in range(40):
        history.go_on()
        requests = [*requests[-6:], *(a_request(dice) for _ in range(3))]
        found = asked.together(*requests)
        expected = fresh.together(*requests)
        for request, ours, theirs in zip(list(requests), found, expected, strict=True):
            assert Response.FromString(ours) == Response.FromString(theirs), request
            assert ours == theirs, "byte for byte"
            if token := Response.FromString(ours).next_page_token:
                following = SearchProductsRequest()
                following.CopyFrom(request)
                following.page_token = token
                requests.append(following)
        assert asked.together(*requests) == fresh.together(*requests)
    assert asked.full < fresh.full / 2, "most of it was remembered"


class RandomHistory:
    """Products that come and change, and views that follow one by one."""

    def __init__(self, read_side: ReadSide, dice: random.Random) -> None:
        self._read_side = read_side
        self._dice = dice
        self._history: list[Event] = []
        self._products = 0
        self._first = read_side.position
        self._at = dict.fromkeys(("product_card", "product_search", "search_word"), 0)

    def go_on(self) -> None:
        """Some events happen, and some of the views take them in."""
        self._history += [self._event() for _ in range(self._dice.randrange(3))]
        for view in self._at:
            if self._dice.random() < 0.7:
                self._catch_up(view)

    def _event(self) -> Event:
        dice = self._dice
        product = dice.randint(1, max(self._products, 1))
        if not self._products or dice.random() < 0.3:
            self._products += 1
            event = events.product_added(
                self._products, stock=dice.randint(0, 3), description=dice.choice(("", a_text(dice)))
            )
            added = event.product_added
            added.name, added.category = a_text(dice), dice.choice(("Tea", "Home", "Éclairage", "desk"))
            added.price.CopyFrom(usd(dice.randint(1, 4)))
            added.attributes.extend(attributes(dice))
            return event
        return dice.choice(
            [
                a_revision(dice, product),
                events.price_changed(product, price=dice.randint(1, 4)),
                events.stock_adjusted(product, delta=1),
                events.order_placed(len(self._history), lines=[(product, 1)]),
                events.product_discontinued(product),
            ]
        )

    def _catch_up(self, view: str) -> None:
        self._at[view] = len(self._history)
        rows = fold(PROJECTIONS[view], feed_events(self._history), {}).rows
        moved = text("UPDATE tandem_read.projection SET position = :position WHERE view = :view")
        with self._read_side.engine.begin() as connection:
            upsert(
                connection,
                VIEWS[view],
                [(uuid.UUID(bytes=it), row.position, *row.columns, row.value) for it, row in rows.items() if row],
            )
            connection.execute(moved, {"position": self._first + self._at[view], "view": view})


def a_revision(dice: random.Random, product: int) -> Event:
    event = events.product_revised(product, name=dice.choice((a_text(dice), "Oak")))
    event.product_revised.description = dice.choice(("", "Oak", a_text(dice)))
    event.product_revised.attributes.extend(attributes(dice))
    return event


def attributes(dice: random.Random) -> list[ProductAttribute]:
    return [ProductAttribute(name=it, value=dice.choice(VALUES)) for it in ("Colour", "Size") if dice.random() < 0.5]


def a_text(dice: random.Random) -> str:
    return " ".join(
        dice.choices(("Oak", "Lamp", "Brass", "Chair", "Crème", "Olive", "Tea & more"), k=dice.randint(1, 3))
    )


def a_request(dice: random.Random) -> SearchProductsRequest:
    request = SearchProductsRequest(
        query=" ".join(dice.choices(WORDS, k=dice.randrange(3))),
        page_size=dice.choice((0, 1, 2, 5)),
        sort=dice.choice(SORTS),
    )
    wanted = request.filter
    if dice.random() < 0.2:
        wanted.categories.extend(dice.sample(("Tea", "Beverages", "desk"), k=2))
    for name in ("Colour", "Size"):
        if dice.random() < 0.2:
            wanted.attributes.add(name=name, values=dice.sample(VALUES, k=2))
    request.detailed_facets = dice.random() < 0.4
    if dice.random() < 0.2:
        wanted.min_price.CopyFrom(usd(2))
    if dice.random() < 0.2:
        wanted.max_price.CopyFrom(usd(3))
    wanted.in_stock, wanted.include_discontinued = dice.random() < 0.2, dice.random() < 0.3
    return request
