"""Tables of other systems: what their rows say, and what is wrong with them."""

from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from commerce.command.v1 import command_service_pb2 as commands
from commerce.type.v1.money_pb2 import Money
from shop.importing import TABLES, total
from tandem.cli.tables import MAX_PROBLEMS, Problems, Record, Source, records_of
from tests.support.builders import euros, usd

TABLE = {it.name: it for it in TABLES}


def read(folder: Path, table: str, currency: str = "EUR", zone: str = "", **files: str) -> list[Record]:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    source = Source(folder, "old", currency, ZoneInfo(zone) if zone else UTC, frozenset({"internal_note"}))
    records = records_of(TABLE[table], source)
    assert records is not None
    return records


def problems(folder: Path, table: str, **files: str) -> list[str]:
    with pytest.raises(Problems) as found:
        read(folder, table, **files)
    return str(found.value).splitlines()


def test_a_row_says_fields_by_their_paths(tmp_path: Path) -> None:
    text = (
        "customer_id,name,registered_at,address.street,address.city,address.country_code,address.company,guest,internal_note\n"
        '17,"Lovelace, Ada",2009-05-01,Mill Lane 1,London,GB,,yes,likes tea\n\n'
    )
    [record] = read(tmp_path, "customers", zone="Europe/Berlin", customers__csv=text)
    request: commands.RegisterCustomerRequest = record.request
    assert (record.key, request.name, request.guest, request.external_reference) == ("17", "Lovelace, Ada", True, "17")
    assert (request.address.street, request.address.company) == ("Mill Lane 1", "")
    assert request.registered_at.ToJsonString() == "2009-04-30T22:00:00Z"
    # The same key is the same customer in every run, and another one of another system.
    assert read(tmp_path, "customers", zone="Europe/Berlin")[0].request == request
    other = records_of(TABLE["customers"], Source(tmp_path, "older", "EUR", UTC, frozenset({"internal_note"})))
    assert other is not None
    assert other[0].request.customer_id != request.customer_id


def test_a_product_has_attributes_with_several_values_and_may_be_discontinued(tmp_path: Path) -> None:
    names = "product_id,name,price,attributes.Colour,attributes.Colour,attributes.Size,discontinued"
    text = f"{names}\np1,Cup,12.99,red,blue,,1\n"
    [record] = read(tmp_path, "products", products__csv=text)
    assert [(it.name, it.value) for it in record.request.attributes] == [("Colour", "red"), ("Colour", "blue")]
    assert record.request.price == euros(1299)
    assert record.further == (commands.DiscontinueProductRequest(product_id=record.request.product_id),)
    (tmp_path / "products.csv").unlink()
    colours = '"attributes": {"Colour": ["red", "blue"]}'
    line = f'{{"product_id": 1, "name": "Cup", "price": 12.99, {colours}, "discontinued": false}}'
    [as_json] = read(tmp_path, "products", products__jsonl=line)
    assert as_json.request.attributes == record.request.attributes
    assert (as_json.request.price, as_json.further) == (euros(1299), ())


ORDERS = (
    "order_id,customer_id,placed_at,shipping_fee,terms.discount,terms.tax,total,currency\n"
    "R1,17,2019-05-14,4.50,2,1.77,27.27,USD\n"
)
LINES = "order_id,product_id,unit_price,quantity,line_total\nR1,p1,10,2,\nR1,p1,4,1,3.00\n"


def test_lines_are_a_file_of_their_own_or_a_list(tmp_path: Path) -> None:
    [record] = read(tmp_path, "orders", orders__csv=ORDERS, order_lines__csv=LINES)
    request: commands.ImportOrderRequest = record.request
    source = Source(tmp_path, "old", "EUR", UTC)
    assert request.customer_id == source.id_of("customers", "17")
    assert [it.product_id for it in request.lines] == [source.id_of("products", "p1")] * 2
    assert [it.unit_price for it in request.lines] == [usd(1000), usd(400)]
    assert total(request) == request.total == usd(2000 + 300 - 200 + 450 + 177)
    assert request.terms.external_reference == "R1"
    for name in ("orders.csv", "order_lines.csv"):
        (tmp_path / name).unlink()
    line = (
        '{"order_id": "R1", "customer_id": 17, "placed_at": "2019-05-14", "shipping_fee": "4.50", "total": 27.27,'
        ' "currency": "USD", "terms": {"discount": 2, "tax": "1.77"}, "lines": [{"product_id": "p1", "unit_price": 10,'
        ' "quantity": 2}, {"product_id": "p1", "unit_price": 4, "quantity": 1, "line_total": 3.00}]}'
    )
    assert read(tmp_path, "orders", orders__jsonl=line)[0].request == request


@pytest.mark.parametrize(
    ("text", "minor_units", "currency"),
    [("12.9", 1290, "EUR"), ("1200 JPY", 1200, "JPY"), ("1.234 KWD", 1234, "KWD"), ("0", 0, "EUR")],
)
def test_an_amount_has_as_many_decimals_as_its_currency(
    tmp_path: Path, text: str, minor_units: int, currency: str
) -> None:
    [record] = read(tmp_path, "products", products__csv=f"product_id,name,price\n1,Cup,{text}\n")
    assert record.request.price == Money(minor_units=minor_units, currency_code=currency)


def test_everything_that_is_wrong_is_named_with_its_place(tmp_path: Path) -> None:
    products = (
        "product_id,name,price,initial_stock,unlimited_stock,colour,added_at\n"
        "1,Cup,12.999,x,maybe,red,yesterday\n"
        ",Pot,1.5e3,1,no,,\n"
        "1,Can,1,1,no,,\n"
    )
    assert problems(tmp_path, "products", products__csv=products) == [
        "products.csv:2: price is 12.999, and EUR has 2 decimals",
        "products.csv:2: initial_stock is 'x', and must be a whole number",
        "products.csv:2: unlimited_stock is 'maybe', and must be true or false",
        "products.csv:2: colour is no field of AddProductRequest",
        "products.csv:2: added_at is 'yesterday', and must be a time such as 2024-05-31 or 2024-05-31T09:30:00+02:00",
        "products.csv:3: product_id is missing",
        "products.csv:3: price is '1.5e3', and must be an amount such as 12.99",
        "products.csv:4: the key 1 comes a second time",
    ]
    lines = LINES + "R9,p1,1,1,\n,p1,1,1,\n"
    assert problems(tmp_path, "orders", orders__csv=ORDERS, order_lines__csv=lines) == [
        "order_lines.csv:5: order_id is missing",
        "order_lines: 1 keys are not in orders.csv, such as R9",
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"customers__csv": "customer_id,name\n1\n"}, "customers.csv:2: 1 cells, and the first line has 2"),
        ({"customers__jsonl": "[]"}, "customers.jsonl:1: is no object"),
        ({"customers__jsonl": "{"}, "customers.jsonl:1: is no JSON"),
        ({"customers__jsonl": "", "customers__csv": ""}, "which is it?"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    [problem] = problems(tmp_path, "customers", **files)
    assert said in problem


def test_some_problems_are_named_and_the_others_counted(tmp_path: Path) -> None:
    rows = "".join(f"{number},Cup,x\n" for number in range(MAX_PROBLEMS + 5))
    found = problems(tmp_path, "products", products__csv=f"product_id,name,price\n{rows}")
    assert (len(found), found[-1]) == (MAX_PROBLEMS + 1, "and 5 more")


def test_a_table_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert records_of(TABLE["customers"], Source(tmp_path, "old", "EUR", UTC)) is None
