"""Requests that nobody should send, made from the contract's descriptors: the same for the same seed and number."""

import math
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from tests.support.builders import identity

# As long as texts of the contract may be; and one less, and one more.
LIMITS = (20, 36, 40, 50, 100, 200, 254, 300, 500, 4000, 10_000)
# Marks, letters that become many, what shows nothing, what turns round, what ends a text elsewhere; words of other
# languages than this one, in which someone may have put a text.
PIECES = (
    *("", " ", "x", "é", "e\u0301", "\u0301\u0323", "\ufdfa", "İ", "\ufb01", "\u200d", "\u202e", "\ufeff", "\u2028"),
    *("\0", "\x1b[2J", "\r\n", "\U0001f375", "\U0010ffff", "'; --", "%s%n", "{0}", "$1", "\\", "<b>", "../", "1e999"),
)
COUNTS = (0, 1, 2, 20, 21, 51, 101, 201, 1001)
FLOATS = (math.nan, math.inf, -math.inf, -0.0, 1e308)
METADATA = (
    ("tandem-actor", "x" * 200),
    ("tandem-actor", "a b@c"),
    ("tandem-causation-id", "'; --"),
    ("traceparent", "00-00000000000000000000000000000000-0000000000000000-00"),
    ("traceparent", "ff-" + "z" * 60),
    ("x-request-id", "x" * 5000),
    ("x-request-id", '{"a": "%s"}'),
    ("tandem-correlation-id-bin", b"\xff\0"),
)


@dataclass(frozen=True)
class Input:
    """A call. `repr` of it is all that one needs to send it again."""

    path: str
    payload: bytes
    metadata: tuple[tuple[str, Any], ...]


def hostile_input(methods: Sequence[MethodDescriptor], seed: int, number: int, tokens: Sequence[str]) -> Input:
    """tokens: some that are right."""
    return _Maker(random.Random(f"{seed}/{number}"), tokens).input(methods[number % len(methods)])


class _Maker:
    def __init__(self, chance: random.Random, tokens: Sequence[str]) -> None:
        self._chance = chance
        self._tokens = tokens
        # Which part of the fields is not as the contract wants it: without those that are, nothing would be done.
        self._wrong = chance.choice((0.0, 0.1, 0.1, 0.5, 1.0))

    def input(self, method: MethodDescriptor) -> Input:
        chance = self._chance
        path = f"/{method.containing_service.full_name}/{method.name}"
        payload = self._message(method.input_type).SerializeToString()
        if chance.random() < 0.4:
            payload = chance.choice(MUTATIONS)(payload, chance)
        return Input(path, payload, (chance.choice(METADATA),) if chance.random() < 0.1 else ())

    def _message(self, descriptor: Descriptor) -> Any:
        message: Any = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._chance.random() < 0.1:
                continue
            if not field.is_repeated:
                self._set(message, field)
                continue
            count = self._chance.choice(COUNTS) if self._is_wrong() else 1
            one = self._value(field)
            for number in range(count):
                value = one if number > 20 else self._value(field)
                holder = getattr(message, field.name)
                holder.append(value) if field.message_type is None else holder.add().CopyFrom(value)
        return message

    def _set(self, message: Any, field: FieldDescriptor) -> None:
        value = self._value(field)
        if field.message_type is None:
            setattr(message, field.name, value)
        else:
            getattr(message, field.name).CopyFrom(value)

    def _is_wrong(self) -> bool:
        return self._chance.random() < self._wrong

    def _value(self, field: FieldDescriptor) -> Any:
        chance, wrong = self._chance, self._is_wrong()
        if field.message_type is not None:
            return GetMessageClass(field.message_type)() if wrong else self._message(field.message_type)
        if field.enum_type is not None:
            return chance.choice((99, -1, 2**31 - 1)) if wrong else chance.choice(field.enum_type.values).number
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                text = self._text() if wrong else self._right_text(field.name)
                return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
            case FieldDescriptor.CPPTYPE_BOOL:
                return chance.random() < 0.7
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return chance.choice(FLOATS)
        bits = 32 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
        signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return chance.choice((least, most, most - 1, 0, max(least, -1))) if wrong else chance.randrange(1, 4)

    def _right_text(self, name: str) -> str:
        chance = self._chance
        if name == "request_id":
            return str(uuid.UUID(int=chance.getrandbits(128)))
        if name.endswith(("_id", "_ids")):
            kind = name.removesuffix("_ids").removesuffix("_id")
            return identity(kind, chance.choice((1, 2, 3, chance.randrange(10**9))))
        if name in ("at_least_as_fresh", "tokens", "resume_from", "cursor", "after"):
            return chance.choice(self._tokens)
        return {"currency_code": "USD", "country_code": "DE", "email": "a@b"}.get(name, "Tea")

    def _text(self) -> str:
        chance = self._chance
        match chance.randrange(4):
            case 0:
                return "".join(chance.choices(PIECES, k=chance.randrange(1, 9)))
            case 1:
                size = chance.choice(LIMITS) + chance.choice((-1, 0, 1))
                return (chance.choice(PIECES[1:]) * size)[:size]
            case 2:
                token = chance.choice(self._tokens)
                place = chance.randrange(len(token))
                return token[:place] + chance.choice("A_-=1é") + token[place + 1 :]
            case _:
                name = str(uuid.UUID(int=chance.getrandbits(128)))
                return chance.choice((name.upper(), f"{{{name}}}", f"urn:uuid:{name}", name[:-1], name + " "))


def _truncated(payload: bytes, chance: random.Random) -> bytes:
    return payload[: chance.randrange(len(payload) + 1)]


def _flipped(payload: bytes, chance: random.Random) -> bytes:
    changed = bytearray(payload)
    for _ in range(chance.randrange(1, 4) if payload else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _inserted(payload: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(payload) + 1)
    return payload[:place] + chance.randbytes(chance.randrange(1, 9)) + payload[place:]


def _doubled(payload: bytes, chance: random.Random) -> bytes:
    """Each field twice, also those of a oneof."""
    return payload + payload


def _no_text(payload: bytes, chance: random.Random) -> bytes:
    """No UTF-8, where there were letters."""
    return payload.replace(chance.choice((b"e", b"a", b"0", b"-")), b"\xff")


def _unknown(payload: bytes, chance: random.Random) -> bytes:
    """Field 1000, of bytes: no contract of today has it. Sometimes more of it than servers take."""
    size = chance.choice((0, 100, 20_000, 300_000))
    return payload + b"\xc2\x3e" + _varint(size) + bytes(size)


def _nested(payload: bytes, chance: random.Random) -> bytes:
    """Groups in groups, deeper than Protobuf goes."""
    depth = chance.choice((10, 101, 5000))
    return payload + b"\xc3\x3e" * depth + b"\xc4\x3e" * chance.choice((0, depth))


def _endless(payload: bytes, chance: random.Random) -> bytes:
    """Lengths and numbers that are too large."""
    return payload + chance.choice((b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\xff\xff\xff\xff\x07x", b"\x08" + b"\xff" * 20))


def _wrong_kinds(payload: bytes, chance: random.Random) -> bytes:
    """Numbers where texts are, texts where messages are."""
    return payload + b"".join(bytes([number << 3 | chance.randrange(6)]) + b"\x01x" for number in range(1, 9))


def _garbage(payload: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(200))


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_truncated, _flipped, _inserted, _doubled, _no_text, _unknown, _nested, _endless, _wrong_kinds, _garbage),
)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
