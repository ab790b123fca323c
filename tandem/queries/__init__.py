"""Answering queries from views that follow the writes: rows by id, pages of lists, statements, watches; each as fresh as
its caller asks. It knows no view: what there is to ask comes from the contract's descriptors and from the domain.
"""
