"""What the parameters of a domain's functions are typed as: it says which message each function is for."""

from collections.abc import Callable
from inspect import get_annotations, signature
from typing import Any

from google.protobuf.message import Message


def message_typed(function: Callable[..., Any], position: int) -> type[Message]:
    """The class that the parameter at a position is typed as. Raises TypeError where that is no message."""
    where = f"{function.__module__}.{function.__qualname__}"
    names = list(signature(function).parameters)
    if len(names) <= position:
        raise TypeError(f"{where} has {len(names)} parameters, and needs {position + 1}")
    found = get_annotations(function, eval_str=True).get(names[position])
    if not (isinstance(found, type) and issubclass(found, Message)):
        raise TypeError(f"{where}: type {names[position]} as a message of the contract")
    return found
