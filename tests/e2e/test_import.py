"""`tandem import`: a shop moves here, is ended on the way, and is compared with what it was."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner

from commerce.command.v1.command_service_pb2 import AdjustStockRequest
from commerce.query.v1 import query_service_pb2 as queries
from commerce.type.v1.consistency_pb2 import Consistency
from commerce.type.v1.order_status_pb2 import OrderStatus
from shop.cli import app
from tandem.cli import importing
from tandem.cli.tables import Source
from tandem.testing.stack import up_to
from tests.support.builders import euros
from tests.support.northwind import COUNTRIES, FOLDER
from tests.support.stack import Stack

TABLES = {
    "customers.csv": """\
customer_id,name,email,registered_at,guest,address.street,address.city,address.country_code,address.company
1,Ada Lovelace,ada@example.com,2009-05-01T08:00:00Z,,Mill Lane 1,London,GB,Analytical Engines
2,Ben Ohnesorg,,2010-01-01,yes,,,,
""",
    "products.csv": """\
product_id,name,price,added_at,initial_stock,unlimited_stock,not_shipped,discontinued,attributes.Colour,attributes.Colour
10,Teapot,25.00,2009-01-01,7,,,,red,blue
11,Recipes (PDF),4.90,2012-01-01,,yes,yes,,,
12,Samovar,199.00,2008-01-01,0,,,true,,
""",
    "orders.jsonl": """\
{"order_id": 100, "customer_id": 1, "placed_at": "1999-12-31", "shipped_at": "2000-01-02", "shipping_fee": 4.50, TERMS}
{"order_id": 101, "customer_id": 2, "placed_at": "2013-03-01", "total": 4.90}
{"order_id": 102, "customer_id": 1, "placed_at": "2014-01-01", "cancelled_at": "2014-01-02"}
""",
    "order_lines.csv": """\
order_id,product_id,unit_price,quantity,product_name
100,10,12.00,1,Tea pot
100,10,25.99,1,
101,11,4.90,1,
102,12,150,1,
""",
}
TERMS = '"terms": {"discount": 10, "tax": 5.19, "tax_included": true}, "total": 32.49'
TABLES["orders.jsonl"] = TABLES["orders.jsonl"].replace("TERMS", TERMS)


class Shop:
    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self._addresses = ["--command-address", stack.command_server.address]
        self._addresses += ["--query-address", stack.query_server.address]

    def run(self, *words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["import", str(self.folder), "--json", *self._addresses, *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if result.stdout else result.stderr

    def id_of(self, table: str, key: object) -> str:
        return Source(self.folder, "import", "", UTC).id_of(table, str(key))


@pytest.fixture
def shop(new_stack: Callable[..., Stack], tmp_path: Path) -> Shop:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, text in TABLES.items():
        (folder / name).write_text(text)
    return Shop(new_stack(cache_nodes=up_to(1)), folder)


def counts(report: Any, *names: str) -> dict[str, Any]:
    return {it["name"]: tuple(it[name] for name in names) for it in report["tables"]}


def test_a_shop_comes_in_whole_once_and_is_compared(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.run("--check", "--currency", "EUR")["rows"] == {"customers": 2, "products": 3, "orders": 3}
    # A run that ends after its first window has sent one row.
    monkeypatch.setattr(importing, "_WINDOW", 1)
    sent = importing.Journal.note
    with monkeypatch.context() as patched:

        def end(journal: importing.Journal, *noted: Any) -> None:
            sent(journal, *noted)
            raise KeyboardInterrupt

        patched.setattr(importing.Journal, "note", end)
        assert "goes on when it is run again" in shop.run("--currency", "EUR", code=1)

    report = shop.run("--currency", "EUR")
    assert report["well"]
    assert counts(report, "rows", "here", "sent", "before", "refused") == {
        "customers": (2, 2, 1, 1, []),
        "products": (3, 3, 3, 0, []),
        "orders": (3, 3, 3, 0, []),
    }
    orders = report["tables"][2]
    assert orders["sums_there"] == orders["sums_here"] == {"EUR": 3249 + 490 + 15000}
    again = shop.run("--currency", "EUR")
    assert counts(again, "here", "sent", "before") == {
        "customers": (2, 0, 2), "products": (3, 0, 3), "orders": (3, 0, 3),
    }  # fmt: skip
    # Who has lost the journal sends everything again, and changes nothing.
    (shop.folder / ".tandem-import-import.journal").unlink()
    assert counts(shop.run("--currency", "EUR"), "here", "missing") == {
        "customers": (2, []), "products": (3, []), "orders": (3, []),
    }  # fmt: skip
    _is_as_it_was(shop)


def _is_as_it_was(shop: Shop) -> None:
    stub = shop.stack.queries
    command, projector = shop.stack.command_server.address, shop.stack.projector.address
    verify = CliRunner().invoke(app, ["verify", f"--command-address={command}", f"--projector-address={projector}"])
    assert verify.exit_code == 0, verify.output
    request = queries.GetOrderDetailsRequest(order_id=shop.id_of("orders", 100))
    order = stub.GetOrderDetails(request).order_details
    assert order.status == OrderStatus.ORDER_STATUS_SHIPPED
    assert (order.total, order.subtotal, order.terms.discount) == (euros(3249), euros(3799), euros(1000))
    assert order.placed_at == Timestamp(seconds=946598400)
    assert [it.product_name for it in order.lines] == ["Tea pot", "Teapot"]
    assert order.terms.external_reference == "100"
    customer = stub.GetCustomer(queries.GetCustomerRequest(customer_id=shop.id_of("customers", 2))).customer
    assert (customer.guest, customer.external_reference) == (True, "2")
    cards = {it.external_reference: it for it in stub.ListProducts(queries.ListProductsRequest()).products}
    assert [(it.available, it.units_sold, it.discontinued) for _, it in sorted(cards.items())] == [
        (7, 2, False),
        (10**12, 1, False),
        (0, 0, True),
    ]


def test_what_is_refused_is_named_mended_and_sent_again(shop: Shop) -> None:
    wrong = TABLES["orders.jsonl"].replace('"total": 4.90', '"total": 5')
    (shop.folder / "orders.jsonl").write_text(wrong)
    report = shop.run("--currency", "EUR", code=1)
    [_, _, orders] = report["tables"]
    assert (orders["sent"], orders["missing"]) == (2, ["101"])
    [refused] = orders["refused"]
    assert refused.startswith("orders 101: FAILED_PRECONDITION: ")
    assert (orders["sums_there"], orders["sums_here"]) == ({"EUR": 18739}, {"EUR": 18249})
    (shop.folder / "orders.jsonl").write_text(TABLES["orders.jsonl"])
    assert counts(shop.run("--currency", "EUR"), "sent", "before")["orders"] == (1, 2)
    # What has another amount than in the files differs.
    other = TABLES["products.csv"].replace("4.90,2012", "5.00,2012")
    (shop.folder / "products.csv").write_text(other)
    [_, products, _] = shop.run("--currency", "EUR", code=1)["tables"]
    assert (products["there"], products["differing"]) == (1, ["11"])


def test_files_that_are_wrong_bring_in_nothing(shop: Shop) -> None:
    (shop.folder / "customers.csv").write_text("customer_id,name,shoe_size\n1,Ada,38\n")
    said = shop.run(code=2)
    assert "shoe_size is no field of RegisterCustomerRequest" in said
    assert "price has no currency" in said
    assert not shop.stack.queries.ListCustomers(queries.ListCustomersRequest()).customers
    CliRunner().invoke(app, ["import", str(shop.folder / "nowhere")])
    assert "there is no time zone" in shop.run("--time-zone", "Mars/North", code=2)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _address(row: dict[str, str], ours: str, theirs: str) -> dict[str, str]:
    names = ("street", "city", "region", "postal_code")
    return {f"{ours}.{it}": row[theirs + it] for it in names} | {
        f"{ours}.country_code": COUNTRIES[row[f"{theirs}country"]]
    }


def _amount(cents: str) -> Decimal:
    return Decimal(cents) / 100


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the Northwind data is not beside this project")
def test_northwind_moves_here_and_both_sides_are_equal(shop: Shop) -> None:
    """Its orders have the prices of their day, and no price is changed between them."""
    shutil.rmtree(shop.folder)
    shop.folder.mkdir()
    _write(shop.folder / "customers.csv", [
        {"customer_id": it["customer_id"], "name": it["company_name"], **_address(it, "address", "")}
        for it in _rows("customers")
    ])  # fmt: skip
    _write(shop.folder / "products.csv", [
        {"product_id": it["product_id"], "name": it["product_name"], "category": it["category"],
         "price": _amount(it["unit_price_cents"]), "initial_stock": it["units_in_stock"],
         "discontinued": it["discontinued"]}
        for it in _rows("products")
    ])  # fmt: skip
    _write(shop.folder / "orders.csv", [
        {"order_id": it["order_id"], "customer_id": it["customer_id"], "placed_at": it["order_date"],
         "shipped_at": it["shipped_date"], "shipping_fee": _amount(it["freight_cents"]),
         "shipping_address.recipient": it["ship_name"], **_address(it, "shipping_address", "ship_")}
        for it in _rows("orders")
    ])  # fmt: skip
    _write(shop.folder / "order_lines.csv", [
        {"order_id": it["order_id"], "product_id": it["product_id"], "unit_price": _amount(it["unit_price_cents"]),
         "quantity": it["quantity"], "discount_basis_points": int(it["discount_percent"]) * 100}
        for it in _rows("order_lines")
    ])  # fmt: skip
    report = shop.run("--currency", "USD")
    assert counts(report, "rows", "here", "others") == {
        "customers": (91, 91, 0), "products": (77, 77, 0), "orders": (830, 830, 0),
    }  # fmt: skip
    stock = {it["product_id"]: int(it["units_in_stock"]) for it in _rows("products")}
    adjusted = AdjustStockRequest(product_id=shop.id_of("products", 1), delta=1)
    token = shop.stack.commands.AdjustStock(adjusted).receipt.consistency_token
    fresh = Consistency(at_least_as_fresh=token)
    cards = shop.stack.queries.ListProducts(queries.ListProductsRequest(page_size=100, consistency=fresh)).products
    assert {it.external_reference: it.available for it in cards} == stock | {"1": stock["1"] + 1}
