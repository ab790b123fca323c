"""Lists of all that is there, in the order of ids."""

from commerce.query.v1.query_service_pb2 import ListCustomersRequest, ListOrdersRequest, ListProductsRequest
from shop.views import customer_profile, order_summary, product_card
from tandem.queries.checker import QueryChecker
from tandem.queries.pages import KeyList, Selection

CUSTOMERS = Selection(KeyList(customer_profile))
PRODUCTS = Selection(KeyList(product_card))
ORDERS = Selection(KeyList(order_summary))


def all_customers(_request: ListCustomersRequest, _check: QueryChecker) -> Selection:
    return CUSTOMERS


def all_products(_request: ListProductsRequest, _check: QueryChecker) -> Selection:
    return PRODUCTS


def all_orders(_request: ListOrdersRequest, _check: QueryChecker) -> Selection:
    return ORDERS
