"""Answering queries from views that follow the writes: rows by id, pages of lists, statements, watches.

Each answer is as fresh as its caller asks. No view is known here: the contract's descriptors and the domain say what
there is to ask.
"""
