"""SearchProducts: full-text search over product_search, filtered and sorted by product_card.

A word of the query is found where a word of the product begins with it, or has the same stem. When that finds too
little, each word that no word begins with is also taken for the words of the catalogue that are spelled most like it,
and the page tokens keep what it was taken for: all pages of a search look for the same.

`request` says what is asked for. `statements` search in full, one statement a page. What the text alone decides is kept
in `memory`, and `page` makes a page of that and of the cards as they are now. `query` does the one or the other.
"""
