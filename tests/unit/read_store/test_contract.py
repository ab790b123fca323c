"""Tables of views follow from what a contract says of their messages."""

from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import BigInteger, Boolean, DateTime, MetaData, SmallInteger, Text, Uuid

from tandem.projection.projection import plain_columns
from tandem.read_store import tables
from tandem.read_store.contract import contract_views

ID = "a0000000-0000-4000-8000-000000000001"
FIELDS = {
    "text": "TYPE_STRING",
    "id": "TYPE_STRING | uuid",
    "is_so": "TYPE_BOOL",
    "colour": 'TYPE_ENUM type_name: ".of_views.NUMBER.Colour"',
    "count": "TYPE_UINT32",
    "at": 'TYPE_MESSAGE type_name: ".google.protobuf.Timestamp"',
}


@pytest.fixture(autouse=True)
def no_table_of_the_shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """These go into a place of their own."""
    monkeypatch.setattr(tables, "metadata", MetaData(schema=tables.SCHEMA))


def described(number: int, view: str, fields: dict[str, str]) -> Any:
    """A file with a view `SomeView`, whose fields all have columns."""
    parts: list[str] = []
    oneofs: list[str] = []
    for place, (name, kind) in enumerate(fields.items(), start=1):
        kind_, *more = kind.split(" | ")
        rule = "[tandem.options.v1.field] { uuid: true }" if "uuid" in more else ""
        presence = ""
        if "optional" in more:
            presence = f"proto3_optional: true oneof_index: {len(oneofs)}"
            oneofs.append(f'oneof_decl {{ name: "_{name}" }}')
        parts.append(
            f'field {{ name: "{name}" number: {place} label: LABEL_OPTIONAL {presence} type: {kind_}'
            f" options {{ [tandem.options.v1.column]: true {rule} }} }}"
        )
    text = f"""
        name: "of_views/{number}.proto" package: "of_views.n{number}" syntax: "proto3"
        dependency: ["tandem/options/v1/options.proto", "google/protobuf/timestamp.proto"]
        message_type {{ name: "SomeView" options {{ [tandem.options.v1.view] {{ {view} }} }} {" ".join(parts)}
            {" ".join(oneofs)} }}
        message_type {{ name: "NoView" }}
        enum_type {{ name: "Colour" value {{ name: "RED" number: 0 }} }}
    """
    file = text_format.Parse(text.replace("NUMBER", f"n{number}"), FileDescriptorProto())
    Default().Add(file)
    return Default().FindFileByName(file.name)


def test_a_table_has_a_column_for_each_field_that_reads_select_by() -> None:
    found = contract_views(described(1, 'cached: true owner: "id" began: "began_at"', FIELDS))
    table = found.tables["some_view"]
    kinds = [Uuid, BigInteger, Text, Uuid, Boolean, SmallInteger, BigInteger, DateTime, BigInteger]
    names = ["key", "position", *FIELDS, "began_at", "value"]
    assert [it.name for it in table.columns] == names
    assert [type(it.type) for it in table.columns][:-1] == kinds
    assert not any(it.nullable for it in table.columns)
    assert found.cached == {"some_view"}
    assert found.owners == {"some_view": "id"}
    assert found.tables.keys() == {"some_view"}, "NoView is none"


def test_a_field_that_is_optional_may_be_null_and_an_id_that_is_not_may_not_be_empty() -> None:
    fields = {"id": "TYPE_STRING | uuid", "other": "TYPE_STRING | uuid | optional", "count": "TYPE_UINT32 | optional"}
    file = described(5, "", fields)
    table = contract_views(file).tables["some_view"]
    assert [it.name for it in table.columns if it.nullable] == ["other", "count"]
    message, columns = GetMessageClass(file.message_types_by_name["SomeView"]), plain_columns(table)
    assert columns(message(id=ID), 7) == (ID, None, None)
    assert columns(message(id=ID, other=ID, count=0), 7) == (ID, ID, 0)
    for wrong in (message(other=ID), message(id=ID, other="")):
        with pytest.raises(ValueError, match="is empty, and is a UUID"):
            columns(wrong, 7)


def test_another_version_of_a_view_has_another_table() -> None:
    found = contract_views(described(2, "cached: true version: 2", {}))
    assert found.cached == {"some_view_v2"} == {found.tables["some_view"].name}
    assert tables.noun_of(found.tables["some_view"]) == "some_view"


def test_what_has_no_column_by_itself_and_an_owner_that_is_not_there_are_named() -> None:
    money = {"money": 'TYPE_MESSAGE type_name: ".of_views.n3.NoView"'}
    with pytest.raises(ValueError, match=r"SomeView\.money has no column by itself"):
        contract_views(described(3, "", money))
    with pytest.raises(ValueError, match="SomeView has no field customer_id"):
        contract_views(described(4, 'owner: "customer_id"', {}))
