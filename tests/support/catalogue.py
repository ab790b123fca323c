"""A catalogue of 20,000 products, the same every time, and searches of which it is known what they should find."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from commerce.event.v1.event_pb2 import Event, ProductAdded
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tests.support.builders import identity, usd

SIZE = 20_000

_BRANDS = (
    "Alpenrose", "Arvéa", "Bergström", "Brindlewood", "Café Lumière", "Casa Niña", "Dobrovolný", "Élan Vital",
    "Fjällfors", "Glasgow Mills", "Grünwald", "Hagaberg", "Håndverk", "Ipanema", "Jägerhof", "Karlsplatz",
    "Lindgren", "Marchetti", "Nørrebro", "Ostrander", "Pão Dourado", "Quintessa", "Rémoulin", "Smørland", "Tømmer",
    "Umbertide", "Vänern", "Westerholt", "Xylia", "Zürcher",
)  # fmt: skip
_LINES = (
    "Amber", "Antique", "Arctic", "Autumn", "Bamboo", "Brushed", "Carbon", "Ceramic", "Copper", "Cotton", "Crystal",
    "Double", "Enamel", "Folding", "Forest", "Frosted", "Granite", "Hammered", "Harvest", "Insulated", "Ivory",
    "Linen", "Magnetic", "Marble", "Matte", "Midnight", "Natural", "Pocket", "Polished", "Quilted", "Recycled",
    "Rustic", "Scarlet", "Slim", "Stackable", "Stainless", "Summer", "Terracotta", "Velvet", "Walnut",
)  # fmt: skip
_THINGS = {
    "Kitchen": ("Teapot", "Saucepan", "Colander", "Whisk", "Grinder", "Casserole", "Skillet", "Ladle", "Tureen"),
    "Desk": ("Notebook", "Stapler", "Inkwell", "Bookend", "Calendar", "Blotter", "Envelope", "Highlighter"),
    "Garden": ("Trowel", "Wheelbarrow", "Lantern", "Birdhouse", "Sprinkler", "Hammock", "Trellis", "Pergola"),
    "Travel": ("Rucksack", "Suitcase", "Umbrella", "Thermos", "Compass", "Toiletry Bag", "Neck Pillow"),
    "Home/Living": ("Cushion", "Curtain", "Armchair", "Candlestick", "Doormat", "Bookcase", "Chandelier"),
}
_COLOURS = ("white", "black", "green", "blue", "red", "grey", "yellow", "orange")


@dataclass(frozen=True)
class Search:
    """A query and the id of the product that should be among the first three."""

    query: str
    product_id: str


@dataclass(frozen=True)
class _Product:
    number: int
    brand: str
    line: str
    thing: str
    category: str

    @property
    def name(self) -> str:
        return f"{self.brand} {self.line} {self.thing}"

    @property
    def product_id(self) -> str:
        return identity("catalogue", self.number)


def _products(dice: random.Random) -> list[_Product]:
    """Every name once, in no order."""
    names = [
        (brand, line, thing, category)
        for brand in _BRANDS
        for line in _LINES
        for category, things in _THINGS.items()
        for thing in things
    ]
    return [_Product(number, *it) for number, it in enumerate(dice.sample(names, SIZE), start=1)]


def catalogue() -> Iterable[Event]:
    """The 20,000 products as they are added."""
    dice = random.Random("catalogue")
    for it in _products(dice):
        colour, litres = dice.choice(_COLOURS), dice.randint(1, 40)
        added = ProductAdded(
            product_id=it.product_id,
            version=1,
            name=it.name,
            description=f"A {colour} {it.thing.lower()} for every day, {litres} x {dice.randint(2, 9)} in a box.",
            category=it.category,
            price=usd(dice.randint(100, 50_000)),
            stock=dice.randint(0, 50),
            attributes=[ProductAttribute(name="Colour", value=colour), ProductAttribute(name="Set", value=str(litres))],
        )
        yield Event(product_added=added)


def searches() -> list[Search]:
    """Eight kinds of queries, eight of each, about products that are spread over the catalogue."""
    dice = random.Random("catalogue")
    products = _products(dice)
    dice = random.Random("searches")
    found = []
    for kind in range(8):
        for it in dice.sample(products, 8):
            found.append(Search(_query(kind, it, dice), it.product_id))
    return found


def _query(kind: int, it: _Product, dice: random.Random) -> str:
    first, last = it.brand.split()[-1], it.thing.split()[0]
    return (
        it.name,
        f"{it.thing} {it.brand} {it.line}".lower(),
        f"{_typed(it.brand)} {it.line} {it.thing}".lower(),
        # as far as it is typed
        f"{first} {it.line} {last[:4]}",
        # two letters swapped, one left out, one too many, a wrong one
        f"{it.brand} {_swapped(it.line, dice)} {it.thing}",
        f"{it.brand} {it.line} {_without(last, dice)}",
        f"{_doubled(_typed(first), dice)} {it.line} {it.thing}",
        f"{it.brand} {_wrong(it.line, dice)} {it.thing}",
    )[kind]


def _typed(text: str) -> str:
    """As somebody types it whose keyboard has no accents."""
    return text.translate(str.maketrans("áéèíóúýãõñäöüåøÅÉ", "aeeiouyaonaouaoAE"))


def _swapped(word: str, dice: random.Random) -> str:
    at = dice.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _without(word: str, dice: random.Random) -> str:
    at = dice.randrange(1, len(word))
    return word[:at] + word[at + 1 :]


def _doubled(word: str, dice: random.Random) -> str:
    at = dice.randrange(1, len(word))
    return word[:at] + word[at] + word[at:]


def _wrong(word: str, dice: random.Random) -> str:
    at = dice.randrange(1, len(word))
    return word[:at] + dice.choice("bcdfgklmnprst") + word[at + 1 :]
