"""A catalogue of 20,000 products, the same every time: as large and as repetitive as a real one.

A name is a brand, a material and a thing, such as "Ångström Walnut Bread Knife". Each of the three comes hundreds of
times, and descriptions name other products' words: a search has to tell neighbours apart.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from commerce.event.v1 import event_pb2 as events
from commerce.event.v1.event_pb2 import Event
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.product_attribute_pb2 import ProductAttribute
from tests.support.builders import identity

SIZE = 20_000

_BRANDS = (
    "Abernathy", "Ackermann", "Adelgade", "Alcántara", "Almqvist", "Ångström", "Arborwood", "Ashcombe", "Atelier Nord",
    "Baltic Forge", "Barclay", "Beaumont", "Bellweather", "Bergström", "Bianchi", "Blackthorn", "Blumenthal", "Bonnard",
    "Brackenridge", "Brandvold", "Calder", "Campanella", "Çelik", "Chamonix", "Château Bleu", "Clearwater",
    "Copperfield",
    "Cornelius", "Dalgaard", "Delacroix", "Delft & Sons", "Dovetail", "Drummond", "Dürer", "Eastwick", "Edelweiss",
    "Eldridge", "Elmsworth", "Fairbairn", "Falkenberg", "Farrow", "Fennimore", "Fjällräv", "Florentin", "Gallagher",
    "Garnier", "Geißler", "Glenmore", "Granville", "Greenleaf", "Grünwald", "Halvorsen", "Hartmann", "Hawthorne",
    "Hearthstone", "Höganäs", "Holloway", "Huxtable", "Inverness", "Ironside", "Jablonski", "Jörgensen", "Juniper Lane",
    "Kaminski", "Kestrel", "Kingfisher", "Kowalczyk", "Lachapelle", "Landseer", "Larkspur", "Léger", "Lindholm",
    "Łukasz", "Magnusson", "Marchetti", "Marlowe", "Meadowsweet", "Mistral", "Montague", "Müller", "Nakashima",
    "Nightingale", "Nørrebro", "Oakhurst", "O'Donnell", "Olivetto", "Orrefors", "Pemberton", "Pérez", "Pinewood",
    "Quimper", "Quintero", "Ravenscroft", "Renaissance", "Rosenthal", "Rousseau", "Saint-Malo", "Schönberg",
    "Silverdale", "Söderberg", "Sommerville", "Stavanger", "Sterling", "Strasbourg", "Tanaka", "Thistledown",
    "Thornbury", "Trelawney", "Ullswater", "Underhill", "Valencia", "Vandenberg", "Vänern", "Verdigris", "Wakefield",
    "Wellington", "Whitcombe", "Windermere", "Wolfgang", "Yamamoto", "Yorkdale", "Zábřeh", "Zimmermann",
)  # fmt: skip
_MATERIALS = (
    "Bamboo", "Beech", "Birch", "Brass", "Canvas", "Cast Iron", "Ceramic", "Cherry", "Copper", "Cotton", "Enamel",
    "Glass", "Leather", "Linen", "Marble", "Oak", "Pewter", "Porcelain", "Slate", "Stainless Steel", "Stoneware",
    "Walnut", "Wicker", "Wool",
)  # fmt: skip
_THINGS = {
    "Kitchen": ("Bread Knife", "Butter Dish", "Cake Stand", "Carving Board", "Chopping Board", "Coffee Grinder",
                "Colander", "Crème Brûlée Dish", "Egg Cup", "Fondue Pot", "Garlic Press", "Gravy Boat", "Honey Dipper",
                "Mixing Bowl", "Mortar and Pestle", "Pepper Mill", "Rolling Pin", "Salad Servers", "Sauté Pan",
                "Soufflé Ramekin", "Sugar Bowl", "Teapot", "Tureen", "Whisk"),
    "Tableware": ("Beaker", "Café au Lait Bowl", "Candlestick", "Carafe", "Coaster", "Dinner Plate", "Goblet",
                  "Napkin Ring", "Place Mat", "Salt Cellar", "Tumbler", "Vase"),
    "Home & Living": ("Blanket Chest", "Bookend", "Clock", "Coat Hook", "Cushion", "Door Stop", "Footstool", "Lantern",
                      "Magazine Rack", "Mirror", "Picture Frame", "Umbrella Stand"),
    "Desk": ("Fountain Pen", "Inkwell", "Letter Opener", "Letter Tray", "Notebook Cover", "Paperweight", "Pencil Box",
             "Ruler", "Wax Seal"),
    "Garden": ("Bird Feeder", "Boot Scraper", "Dibber", "Flower Pot", "Plant Label", "Pruning Shears", "Sundial",
               "Trowel", "Watering Can", "Wind Chime"),
    "Travel": ("Briefcase", "Flask", "Luggage Tag", "Map Case", "Passport Wallet", "Picnic Basket", "Rucksack",
               "Toiletry Bag", "Walking Stick"),
}  # fmt: skip
_COLOURS = ("Anthracite", "Aubergine", "Azure", "Burgundy", "Charcoal", "Cream", "Emerald", "Ivory", "Mustard",
            "Natural", "Ochre", "Olive", "Rosé", "Sage", "Scarlet", "Teal", "Terracotta", "Umber")  # fmt: skip
_COUNTRIES = ("Austria", "Denmark", "England", "Finland", "France", "Germany", "Italy", "Japan", "Norway", "Poland",
              "Portugal", "Scotland", "Spain", "Sweden", "Türkiye", "Wales")  # fmt: skip
# fmt: off
_PRAISE = ("Made to be handed on.", "Turned by hand, and no two alike.", "Dishwasher safe.", "A present that lasts.",
           "Finished with natural oils.", "Comes in a gift box.", "Designed in the nineteen fifties.",
           "Light, and yet it stands firmly.", "For every day of the year.", "Best cared for with a soft cloth.")
# fmt: on


@dataclass(frozen=True)
class Product:
    """A product of the catalogue. number: from 1."""

    number: int
    name: str
    category: str
    description: str
    attributes: tuple[tuple[str, str], ...]
    price: int
    stock: int

    @property
    def product_id(self) -> str:
        return identity("catalogue", self.number)

    def added(self) -> Event:
        """The event by which it came into the catalogue."""
        return Event(
            product_added=events.ProductAdded(
                product_id=self.product_id,
                version=1,
                name=self.name,
                description=self.description,
                category=self.category,
                price=Money(minor_units=self.price, currency_code="EUR"),
                stock=self.stock,
                attributes=[ProductAttribute(name=name, value=value) for name, value in self.attributes],
            )
        )


@cache
def catalogue() -> Sequence[Product]:
    """All of it, in the order in which the products came. No two have the same name."""
    return list(_products())


def _products() -> Iterator[Product]:
    dice = random.Random("catalogue")
    things = [(thing, category) for category, names in _THINGS.items() for thing in names]
    names = list(product(_BRANDS, _MATERIALS, things))
    dice.shuffle(names)
    for number, (brand, material, (thing, category)) in enumerate(names[:SIZE], start=1):
        colour, country = dice.choice(_COLOURS), dice.choice(_COUNTRIES)
        other, _ = dice.choice(things)
        yield Product(
            number=number,
            name=f"{brand} {material} {thing}",
            category=category,
            description=f"{thing} in {colour.lower()} {material.lower()}, from {country}. {dice.choice(_PRAISE)} "
            f"Goes well with the {dice.choice(_BRANDS)} {other}. Article {100_000 + number}.",
            attributes=(("Colour", colour), ("Made in", country), ("Size", f"{dice.randint(5, 60)} cm")),
            price=dice.randint(200, 20_000),
            stock=dice.choice((0, *range(1, 40))),
        )
