"""The stubs are what proto/ makes. Imports nothing of the domain: it says so when nothing else can be imported."""

import importlib

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from tools.descriptors import descriptors

FILES = [file for file in descriptors().file if file.package.startswith(("commerce.", "tandem."))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_the_stubs_are_what_the_contract_says(file: FileDescriptorProto) -> None:
    advice = f"the stubs are not what proto/{file.name} says: run make gen"
    try:
        stubs = importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
    except ImportError:
        pytest.fail(advice)
    made = FileDescriptorProto.FromString(stubs.DESCRIPTOR.serialized_pb)
    if plain(made) != plain(file):
        # Without the two descriptors: they are thousands of lines.
        pytest.fail(advice)


def plain(file: FileDescriptorProto) -> FileDescriptorProto:
    """Without comments, buf's own notes, and the JSON names that follow from the fields'."""
    copy = FileDescriptorProto()
    copy.CopyFrom(file)
    copy.ClearField("source_code_info")
    copy.DiscardUnknownFields()
    messages = list(copy.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
    return copy
