"""A small shop: python scenario.py COMMANDS QUERIES. The TypeScript example does the same and prints the same."""

import sys

from commerce.command.v1.command_service_pb2 import (
    AddProductRequest,
    PayOrderRequest,
    PlaceOrderLine,
    PlaceOrderRequest,
    RegisterCustomerRequest,
)
from commerce.query.v1.query_service_pb2 import (
    GetOrderDetailsRequest,
    ListRecentOrdersRequest,
    WatchOrderDetailsRequest,
)
from commerce.type.v1.address_pb2 import Address
from commerce.type.v1.money_pb2 import Money
from commerce.type.v1.order_status_pb2 import OrderStatus
from shop.client import Client, rows
from tandem.client.command import command
from tandem.client.errors import InvalidRequest, RuleBroken
from tandem.client.streams import resuming


def main(commands: str = "127.0.0.1:50051", queries: str = "127.0.0.1:50052") -> None:
    with Client(commands=commands, queries=queries) as client:
        session = client.session()

        address = Address(street="Obere Str. 57", city="Berlin", postal_code="12209", country_code="DE")
        registered = session.commands.RegisterCustomer(RegisterCustomerRequest(name="Ada Example", address=address))
        customer_id = registered.customer_id
        price = Money(minor_units=1999, currency_code="EUR")
        added = session.commands.AddProduct(
            AddProductRequest(name="Green Flower Pot", price=price, initial_stock=3),
        )
        product_id = added.product_id

        two = [PlaceOrderLine(product_id=product_id, quantity=2)]
        request = command(PlaceOrderRequest(customer_id=customer_id, lines=two))
        placed = session.commands.PlaceOrder(request)
        print("placed, version", placed.receipt.version)

        again = session.commands.PlaceOrder(request)
        replayed, same = str(again.receipt.replayed).lower(), str(again.order_id == placed.order_id).lower()
        print("the same command again: replayed", replayed, "same order", same)

        order = session.queries.GetOrderDetails(GetOrderDetailsRequest(order_id=placed.order_id)).order_details
        print("read with the token:", order.customer_name, order.total.minor_units, order.total.currency_code)

        try:
            session.commands.PlaceOrder(PlaceOrderRequest(customer_id=customer_id, lines=two))
        except RuleBroken as error:
            print("refused:", error.reason, *(it.subject.replace(product_id, "<product>") for it in error.violations))

        try:
            session.commands.PlaceOrder(PlaceOrderRequest(lines=[PlaceOrderLine(product_id=product_id)]))
        except InvalidRequest as error:
            print("refused:", error.reason, *(f"{it.subject} {it.reason}" for it in error.violations))

        watch = WatchOrderDetailsRequest(order_id=placed.order_id)
        for message in resuming(session.queries.WatchOrderDetails, watch):
            state = message.order_details
            if not message.HasField("order_details"):
                continue
            print("watched:", OrderStatus.Name(state.status), "version", state.version)
            if state.version > 1:
                break
            session.commands.PayOrder(PayOrderRequest(order_id=placed.order_id))

        orders = list(rows(session.queries.ListRecentOrders, ListRecentOrdersRequest(customer_id=customer_id)))
        print("listed:", len(orders), "order,", OrderStatus.Name(orders[0].status))


if __name__ == "__main__":
    main(*sys.argv[1:])
