"""What people type, and the product that they mean: the bar of tests/integration/query_server/test_search_relevance.py.

The lists were written from the catalogues alone, before a search had answered any of them. They are not changed to suit
the search.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.support.catalogue import Product


class KnownQuery(NamedTuple):
    """kind: what is special about it. expected: the name of the product that has to be among the first three."""

    kind: str
    query: str
    expected: str


NORTHWIND_QUERIES = (
    KnownQuery("exact", "Chai", "Chai"),
    KnownQuery("exact", "Chef Anton's Cajun Seasoning", "Chef Anton's Cajun Seasoning"),
    KnownQuery("exact", "Tofu", "Tofu"),
    KnownQuery("exact", "Nord-Ost Matjeshering", "Nord-Ost Matjeshering"),
    KnownQuery("exact", "Queso Manchego La Pastora", "Queso Manchego La Pastora"),
    KnownQuery("exact", "jack's new england clam chowder", "Jack's New England Clam Chowder"),
    KnownQuery("exact", "Vegie-spread", "Vegie-spread"),
    KnownQuery("partial", "boysenberry", "Grandma's Boysenberry Spread"),
    KnownQuery("partial", "organic pears", "Uncle Bob's Organic Dried Pears"),
    KnownQuery("partial", "gumbo", "Chef Anton's Gumbo Mix"),
    KnownQuery("partial", "clam chowder", "Jack's New England Clam Chowder"),
    KnownQuery("partial", "manchego", "Queso Manchego La Pastora"),
    KnownQuery("partial", "fried mee", "Singaporean Hokkien Fried Mee"),
    KnownQuery("partial", "pepper sauce", "Louisiana Fiery Hot Pepper Sauce"),
    KnownQuery("partial", "syrup", "Aniseed Syrup"),
    KnownQuery("partial", "dried apple", "Manjimup Dried Apples"),
    KnownQuery("partial", "scone", "Sir Rodney's Scones"),
    KnownQuery("prefix", "masc", "Mascarpone Fabioli"),
    KnownQuery("prefix", "camem", "Camembert Pierrot"),
    KnownQuery("prefix", "sasq", "Sasquatch Ale"),
    KnownQuery("prefix", "laughing lum", "Laughing Lumberjack Lager"),
    KnownQuery("prefix", "escarg", "Escargots de Bourgogne"),
    KnownQuery("prefix", "mozz", "Mozzarella di Giovanni"),
    KnownQuery("prefix", "teatime choc bis", "Teatime Chocolate Biscuits"),
    KnownQuery("order", "stout steeleye", "Steeleye Stout"),
    KnownQuery("order", "spread grandma's", "Grandma's Boysenberry Spread"),
    KnownQuery("order", "crab boston meat", "Boston Crab Meat"),
    KnownQuery("order", "okra spiced hot", "Louisiana Hot Spiced Okra"),
    KnownQuery("transposed", "gorognzola", "Gorgonzola Telino"),
    KnownQuery("transposed", "pavolva", "Pavlova"),
    KnownQuery("transposed", "cranbrery sauce", "Northwoods Cranberry Sauce"),
    KnownQuery("transposed", "marmalaed", "Sir Rodney's Marmalade"),
    KnownQuery("dropped", "gorgonzla", "Gorgonzola Telino"),
    KnownQuery("dropped", "mascarpne", "Mascarpone Fabioli"),
    KnownQuery("dropped", "chocolte biscuits", "Teatime Chocolate Biscuits"),
    KnownQuery("dropped", "rostbratwrst", "Thüringer Rostbratwurst"),
    KnownQuery("dropped", "lumbrjack lager", "Laughing Lumberjack Lager"),
    KnownQuery("doubled", "raviolli", "Ravioli Angelo"),
    KnownQuery("doubled", "chartreusse", "Chartreuse verte"),
    KnownQuery("doubled", "ikurra", "Ikura"),
    KnownQuery("wrong letter", "camenbert", "Camembert Pierrot"),
    KnownQuery("wrong letter", "anisead syrup", "Aniseed Syrup"),
    KnownQuery("wrong letter", "racklette", "Raclette Courdavault"),
    KnownQuery("wrong letter", "gudbransdalsost", "Gudbrandsdalsost"),
    KnownQuery("wrong letter", "sauerkrout", "Rössle Sauerkraut"),
    KnownQuery("wrong letter", "longbraeds", "Scottish Longbreads"),
    KnownQuery("plain for accented", "tourtiere", "Tourtière"),
    KnownQuery("plain for accented", "pate chinois", "Pâté chinois"),
    KnownQuery("plain for accented", "cote de blaye", "Côte de Blaye"),
    KnownQuery("plain for accented", "guarana fantastica", "Guaraná Fantástica"),
    KnownQuery("plain for accented", "knackebrod", "Gustaf's Knäckebröd"),
    KnownQuery("plain for accented", "sirop erable", "Sirop d'érable"),
    KnownQuery("plain for accented", "rhonbrau", "Rhönbräu Klosterbier"),
    KnownQuery("plain for accented", "grune sosse", "Original Frankfurter grüne Soße"),
    KnownQuery("plain for accented", "lakkalikoori", "Lakkalikööri"),
    KnownQuery("accented for plain", "chocoladé", "Chocolade"),
    KnownQuery("accented for plain", "gnöcchi", "Gnocchi di nonna Alice"),
    KnownQuery("accented for plain", "tarte aü sucre", "Tarte au sucre"),
    KnownQuery("accented for plain", "Älice mutton", "Alice Mutton"),
    KnownQuery("category and name", "seafood konbu", "Konbu"),
    KnownQuery("category and name", "beverages coffee", "Ipoh Coffee"),
    KnownQuery("category and name", "dairy geitost", "Geitost"),
    KnownQuery("category and name", "condiments shouyu", "Genen Shouyu"),
    KnownQuery("partial", "chai", "Chai"),
    KnownQuery("partial", "chang", "Chang"),
    KnownQuery("partial", "Aniseed Syrup", "Aniseed Syrup"),
    KnownQuery("partial", "cajun seasoning", "Chef Anton's Cajun Seasoning"),
    KnownQuery("partial", "gumbo mix", "Chef Anton's Gumbo Mix"),
    KnownQuery("partial", "organic dried pears", "Uncle Bob's Organic Dried Pears"),
    KnownQuery("partial", "cranberry sauce", "Northwoods Cranberry Sauce"),
    KnownQuery("partial", "ikura", "Ikura"),
    KnownQuery("partial", "tofu", "Tofu"),
    KnownQuery("partial", "scones", "Sir Rodney's Scones"),
    KnownQuery("partial", "pavlova", "Pavlova"),
    KnownQuery("partial", "sasquatch", "Sasquatch Ale"),
    KnownQuery("partial", "ravioli", "Ravioli Angelo"),
    KnownQuery("partial", "longlife tofu", "Longlife Tofu"),
    KnownQuery("partial", "okra", "Louisiana Hot Spiced Okra"),
    KnownQuery("partial", "ipoh coffee", "Ipoh Coffee"),
    KnownQuery("order", "pears dried", "Uncle Bob's Organic Dried Pears"),
    KnownQuery("order", "syrup aniseed", "Aniseed Syrup"),
    KnownQuery("order", "marmalade sir rodney", "Sir Rodney's Marmalade"),
    KnownQuery("order", "niku kobe", "Mishi Kobe Niku"),
    KnownQuery("order", "hot pepper louisiana", "Louisiana Fiery Hot Pepper Sauce"),
    KnownQuery("order", "bread long scottish", "Scottish Longbreads"),
    KnownQuery("order", "crab boston", "Boston Crab Meat"),
    KnownQuery("order", "verte chartreuse", "Chartreuse verte"),
    KnownQuery("order", "england chowder", "Jack's New England Clam Chowder"),
    KnownQuery("prefix", "gorgon", "Gorgonzola Telino"),
    KnownQuery("prefix", "mascar", "Mascarpone Fabioli"),
    KnownQuery("prefix", "steel", "Steeleye Stout"),
    KnownQuery("prefix", "manji", "Manjimup Dried Apples"),
    KnownQuery("prefix", "louisiana fie", "Louisiana Fiery Hot Pepper Sauce"),
    KnownQuery("prefix", "raclet", "Raclette Courdavault"),
    KnownQuery("prefix", "escar", "Escargots de Bourgogne"),
    KnownQuery("prefix", "gudbrand", "Gudbrandsdalsost"),
    KnownQuery("prefix", "singap", "Singaporean Hokkien Fried Mee"),
    KnownQuery("prefix", "teatime cho", "Teatime Chocolate Biscuits"),
    KnownQuery("accents", "rossle sauerkraut", "Rössle Sauerkraut"),
    KnownQuery("accents", "thuringer rostbratwurst", "Thüringer Rostbratwurst"),
    KnownQuery("accents", "gumbar gummibarchen", "Gumbär Gummibärchen"),
    KnownQuery("accents", "tunnbrod", "Tunnbröd"),
    KnownQuery("accents", "sirop d'erable", "Sirop d'érable"),
    KnownQuery("accents", "rhonbrau klosterbier", "Rhönbräu Klosterbier"),
    KnownQuery("accents", "rod kaviar", "Röd Kaviar"),
    KnownQuery("accents", "tárte au sucré", "Tarte au sucre"),
    KnownQuery("accents", "semmelknodel", "Wimmers gute Semmelknödel"),
    KnownQuery("accents", "grune sose", "Original Frankfurter grüne Soße"),
    KnownQuery("misspelled", "mozarella", "Mozzarella di Giovanni"),
    KnownQuery("misspelled", "cammembert", "Camembert Pierrot"),
    KnownQuery("misspelled", "chartruse", "Chartreuse verte"),
    KnownQuery("misspelled", "sauerkraut rosle", "Rössle Sauerkraut"),
    KnownQuery("misspelled", "tofuu", "Tofu"),
    KnownQuery("misspelled", "marmelade", "Sir Rodney's Marmalade"),
    KnownQuery("misspelled", "biskuits chocolate", "Teatime Chocolate Biscuits"),
    KnownQuery("misspelled", "ravoli angelo", "Ravioli Angelo"),
    KnownQuery("misspelled", "gnochi", "Gnocchi di nonna Alice"),
    KnownQuery("misspelled", "sasquach ale", "Sasquatch Ale"),
    KnownQuery("misspelled", "cranbery sauce", "Northwoods Cranberry Sauce"),
    KnownQuery("misspelled", "louisana okra", "Louisiana Hot Spiced Okra"),
    KnownQuery("misspelled", "escargot bourgogne", "Escargots de Bourgogne"),
    KnownQuery("misspelled", "queso mancheggo", "Queso Manchego La Pastora"),
    KnownQuery("misspelled", "rostbratwrust", "Thüringer Rostbratwurst"),
    KnownQuery("misspelled", "clam chowdre", "Jack's New England Clam Chowder"),
    KnownQuery("misspelled", "manjimup aples", "Manjimup Dried Apples"),
    KnownQuery("misspelled", "perth pastis", "Perth Pasties"),
    KnownQuery("misspelled", "chef antons gumbo", "Chef Anton's Gumbo Mix"),
    KnownQuery("category and name", "condiments gula", "Gula Malacca"),
    KnownQuery("category and name", "beverages outback", "Outback Lager"),
    KnownQuery("category and name", "confections maxilaku", "Maxilaku"),
    KnownQuery("category and name", "poultry mutton", "Alice Mutton"),
    KnownQuery("category and name", "cereals filo", "Filo Mix"),
    KnownQuery("category and name", "produce tofu longlife", "Longlife Tofu"),
)

CATALOGUE_QUERIES = (
    KnownQuery("exact", "Landseer Marble Blanket Chest", "Landseer Marble Blanket Chest"),
    KnownQuery("exact", "Kestrel Oak Sauté Pan", "Kestrel Oak Sauté Pan"),
    KnownQuery("exact", "O'Donnell Canvas Colander", "O'Donnell Canvas Colander"),
    KnownQuery("exact", "Saint-Malo Stoneware Sundial", "Saint-Malo Stoneware Sundial"),
    KnownQuery("exact", "Tanaka Leather Dibber", "Tanaka Leather Dibber"),
    KnownQuery("exact", "baltic forge pewter wind chime", "Baltic Forge Pewter Wind Chime"),
    KnownQuery("exact", "DOVETAIL BAMBOO WALKING STICK", "Dovetail Bamboo Walking Stick"),
    KnownQuery("partial", "thornbury gravy cherry", "Thornbury Cherry Gravy Boat"),
    KnownQuery("partial", "fairbairn stainless umbrella", "Fairbairn Stainless Steel Umbrella Stand"),
    KnownQuery("partial", "marchetti iron whisk", "Marchetti Cast Iron Whisk"),
    KnownQuery("partial", "strasbourg mortar brass", "Strasbourg Brass Mortar and Pestle"),
    KnownQuery("partial", "article 108371", "Landseer Marble Blanket Chest"),
    KnownQuery("partial", "ravenscroft iron café", "Ravenscroft Cast Iron Café au Lait Bowl"),
    KnownQuery("prefix", "barclay linen dinn", "Barclay Linen Dinner Plate"),
    KnownQuery("prefix", "pemberton waln beak", "Pemberton Walnut Beaker"),
    KnownQuery("prefix", "wakef stonew honey", "Wakefield Stoneware Honey Dipper"),
    KnownQuery("prefix", "kingf birch mix", "Kingfisher Birch Mixing Bowl"),
    KnownQuery("prefix", "ashcombe enamel coff", "Ashcombe Enamel Coffee Grinder"),
    KnownQuery("order", "chest blanket linen pemberton", "Pemberton Linen Blanket Chest"),
    KnownQuery("order", "carafe copper tanaka", "Tanaka Copper Carafe"),
    KnownQuery("order", "bowl sugar cotton garnier", "Garnier Cotton Sugar Bowl"),
    KnownQuery("order", "vase marble dürer", "Dürer Marble Vase"),
    KnownQuery("transposed", "whitcombe marble gravy baot", "Whitcombe Marble Gravy Boat"),
    KnownQuery("transposed", "hawthonre stainless cushion", "Hawthorne Stainless Steel Cushion"),
    KnownQuery("transposed", "sterling stonewaer chopping board", "Sterling Stoneware Chopping Board"),
    KnownQuery("transposed", "elmsworth steel magaizne rack", "Elmsworth Stainless Steel Magazine Rack"),
    KnownQuery("transposed", "inverness glass paperwieght", "Inverness Glass Paperweight"),
    KnownQuery("transposed", "zimmermann mabrle picture frame", "Zimmermann Marble Picture Frame"),
    KnownQuery("dropped", "cornelius stainless steel mixng bowl", "Cornelius Stainless Steel Mixing Bowl"),
    KnownQuery("dropped", "oakhurst blankt chest marble", "Oakhurst Marble Blanket Chest"),
    KnownQuery("dropped", "delacrox porcelain tureen", "Delacroix Porcelain Tureen"),
    KnownQuery("dropped", "arborwood marble souffle ramkin", "Arborwood Marble Soufflé Ramekin"),
    KnownQuery("dropped", "wellington walnut miror", "Wellington Walnut Mirror"),
    KnownQuery("dropped", "valencia bras dibber", "Valencia Brass Dibber"),
    KnownQuery("doubled", "florentinn slate letter tray", "Florentin Slate Letter Tray"),
    KnownQuery("doubled", "garnier glass butter dishh", "Garnier Glass Butter Dish"),
    KnownQuery("doubled", "yorkdale cerammic place mat", "Yorkdale Ceramic Place Mat"),
    KnownQuery("doubled", "stavanger wiccker picnic basket", "Stavanger Wicker Picnic Basket"),
    KnownQuery("wrong letter", "fennimore walnut candelstick", "Fennimore Walnut Candlestick"),
    KnownQuery("wrong letter", "olivetto enamal rucksack", "Olivetto Enamel Rucksack"),
    KnownQuery("wrong letter", "magnuson pewter map case", "Magnusson Pewter Map Case"),
    KnownQuery("wrong letter", "thistledawn enamel garlic press", "Thistledown Enamel Garlic Press"),
    KnownQuery("wrong letter", "blumentahl stoneware flower pot", "Blumenthal Stoneware Flower Pot"),
    KnownQuery("wrong letter", "eldridge pewter garlik press", "Eldridge Pewter Garlic Press"),
    KnownQuery("wrong letter", "rousso bamboo tureen", "Rousseau Bamboo Tureen"),
    KnownQuery("plain for accented", "halvorsen cotton creme brulee dish", "Halvorsen Cotton Crème Brûlée Dish"),
    KnownQuery("plain for accented", "fjallrav birch tureen", "Fjällräv Birch Tureen"),
    KnownQuery("plain for accented", "celik walnut flower pot", "Çelik Walnut Flower Pot"),
    KnownQuery("plain for accented", "lukasz birch honey dipper", "Łukasz Birch Honey Dipper"),
    KnownQuery("plain for accented", "zabreh slate bird feeder", "Zábřeh Slate Bird Feeder"),
    KnownQuery("plain for accented", "perez ceramic wind chime", "Pérez Ceramic Wind Chime"),
    KnownQuery("plain for accented", "chateau bleu coat hook copper", "Château Bleu Copper Coat Hook"),
    KnownQuery("plain for accented", "alcantara picture frame enamel", "Alcántara Enamel Picture Frame"),
    KnownQuery("accented for plain", "orrefórs brass soufflé ramekin", "Orrefors Brass Soufflé Ramekin"),
    KnownQuery("accented for plain", "bónnard bambôo dinner plate", "Bonnard Bamboo Dinner Plate"),
    KnownQuery("accented for plain", "vandénberg walnut lantérn", "Vandenberg Walnut Lantern"),
    KnownQuery("accent and typo", "schonberg brass peper mill", "Schönberg Brass Pepper Mill"),
    KnownQuery("accent and typo", "leger lether bread knife", "Léger Leather Bread Knife"),
    KnownQuery("accent and typo", "vanern coper dibber", "Vänern Copper Dibber"),
    KnownQuery("category and name", "desk jablonski inkwell stoneware", "Jablonski Stoneware Inkwell"),
    KnownQuery("category and name", "garden orrefors sundial pewter", "Orrefors Pewter Sundial"),
    KnownQuery("attribute", "wakefield dipper olive finland", "Wakefield Stoneware Honey Dipper"),
    KnownQuery("attribute", "huxtable napkin ring terracotta italy", "Huxtable Pewter Napkin Ring"),
    KnownQuery("attribute", "chamonix scarlet porcelain cushion", "Chamonix Porcelain Cushion"),
    KnownQuery("attribute", "marlowe notebook aubergine france", "Marlowe Bamboo Notebook Cover"),
    KnownQuery("attribute and typo", "kowalczyk boot scraper terracota beech", "Kowalczyk Beech Boot Scraper"),
    KnownQuery("description", "yorkdale ceramic emerald 38 cm", "Yorkdale Ceramic Place Mat"),
)


def made_up(products: Sequence[Product], each: int) -> Iterator[KnownQuery]:
    """So many queries of each kind, about products drawn from all, the same every time."""
    dice = random.Random("searches")
    for it in dice.sample(products, each):
        yield KnownQuery("exact", it.name, it.name)
    for it in dice.sample(products, each):
        yield KnownQuery("order", " ".join(reversed(it.name.lower().split())), it.name)
    for it in dice.sample(products, each):
        *words, last = it.name.split()
        yield KnownQuery("prefix", " ".join([*words, last[:4]]), it.name)
    for kind in ("transposed", "dropped", "doubled", "wrong letter"):
        for it in dice.sample(products, each):
            words = it.name.split()
            number = dice.choice([number for number, word in enumerate(words) if len(word) > 4])
            words[number] = _misspelled(kind, words[number], dice)
            yield KnownQuery(kind, " ".join(words), it.name)


def _misspelled(kind: str, word: str, dice: random.Random) -> str:
    """The first letter is right: nearly always it is."""
    at = dice.randrange(1, len(word) - 1)
    return {
        "transposed": word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        "dropped": word[:at] + word[at + 1 :],
        "doubled": word[:at] + word[at] + word[at:],
        "wrong letter": word[:at] + dice.choice("abcdefghijklmnoprstuvwz") + word[at + 1 :],
    }[kind]
