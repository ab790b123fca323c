"""The views that a contract has: the messages with the option `tandem.options.v1.view`, and their tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from sqlalchemy import BigInteger, Boolean, Column, DateTime, SmallInteger, Table, Text, Uuid
from sqlalchemy.types import TypeEngine

from tandem.options.v1 import options_pb2
from tandem.read_store.tables import view_table

_TYPES: dict[int, type[TypeEngine[Any]]] = {
    FieldDescriptor.CPPTYPE_STRING: Text,
    FieldDescriptor.CPPTYPE_BOOL: Boolean,
    FieldDescriptor.CPPTYPE_ENUM: SmallInteger,
    FieldDescriptor.CPPTYPE_INT32: BigInteger,
    FieldDescriptor.CPPTYPE_UINT32: BigInteger,
    FieldDescriptor.CPPTYPE_INT64: BigInteger,
}


@dataclass(frozen=True)
class ContractViews:
    """The views of a contract's file.

    tables: by what the views are called, in any version. cached: the views that are read by key, by their names in this
    program, which are their tables'. owners: by view too, the field of its message that names whose a row is.
    """

    tables: Mapping[str, Table]
    cached: frozenset[str]
    owners: Mapping[str, str]


def contract_views(
    file: FileDescriptor, others: Mapping[str, Sequence[Column[Any]]] = MappingProxyType({})
) -> ContractViews:
    """others: columns that are more than a field of the message, by the view's name.

    Raises ValueError for a column that no field can have, and for names of what is not there.
    """
    tables: dict[str, Table] = {}
    cached: set[str] = set()
    owners: dict[str, str] = {}
    for message in file.message_types_by_name.values():
        if not message.GetOptions().HasExtension(options_pb2.view):
            continue
        view = message.GetOptions().Extensions[options_pb2.view]
        name = name_of(message)
        columns = [_column(it) for it in message.fields if it.GetOptions().Extensions[options_pb2.column]]
        if view.began:
            columns.append(Column(view.began, BigInteger, nullable=False))
        table = view_table(name, *columns, *others.get(name, ()), version=view.version or 1)
        table.info["plain"] = tuple(it.name for it in columns[: len(columns) - bool(view.began)])
        table.info["began"] = view.began
        tables[name] = table
        if view.cached:
            cached.add(table.name)
        if view.owner:
            if view.owner not in message.fields_by_name:
                raise ValueError(f"{message.full_name} has no field {view.owner}, which is to name the row's owner")
            owners[table.name] = view.owner
    return ContractViews(tables, frozenset(cached), owners)


def name_of(message: Descriptor) -> str:
    """What the view is called whose rows hold the message: order_details for OrderDetails."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", message.name).lower()


def _column(field: FieldDescriptor) -> Column[Any]:
    """The column of a field: NULL where a field that is `optional` is unset, and the default where another one is."""
    options = field.GetOptions()
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
        kind: TypeEngine[Any] = DateTime(timezone=True)
    elif options.Extensions[options_pb2.field].uuid:
        kind = Uuid()
    elif field.cpp_type in _TYPES and not field.is_repeated:
        kind = _TYPES[field.cpp_type]()
    else:
        raise ValueError(f"{field.full_name} has no column by itself: write it, and what it holds, by hand")
    return Column(field.name, kind, nullable=field.message_type is None and field.has_presence)
