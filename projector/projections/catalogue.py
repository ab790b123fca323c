"""All views, by name."""

from projector.projections import (
    customer_profile,
    order_details,
    order_summary,
    product_card,
    product_search,
    sales_summary,
    subscription_details,
)
from projector.projections.shape import Projection

PROJECTIONS: dict[str, Projection] = {
    it.view: it
    for it in (
        order_details.PROJECTION,
        order_summary.PROJECTION,
        product_card.PROJECTION,
        product_search.PRODUCT_SEARCH,
        product_search.SEARCH_WORD,
        customer_profile.PROJECTION,
        subscription_details.PROJECTION,
        sales_summary.PROJECTION,
    )
}
