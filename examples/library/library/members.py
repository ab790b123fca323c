"""Members: what is known of them, and their erasure."""

from typing import NamedTuple

from google.protobuf.message import Message
from lending.v1 import commands_pb2 as commands
from lending.v1 import events_pb2 as events
from sqlalchemy import BigInteger, Boolean, Column, Table, Text, Uuid

from tandem.commands.domain import Command, change, change_fields, rule
from tandem.commands.rules import Id, must_be_new, refusal
from tandem.commands.write_model import Aggregate, States
from tandem.feed.table import metadata


class Member(NamedTuple):
    id: Id
    version: int
    name: str
    erased: bool


MEMBERS = Aggregate(
    "member",
    Table(
        "member",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("version", BigInteger, nullable=False),
        Column("name", Text, nullable=False),
        Column("erased", Boolean, nullable=False),
    ),
    of_row=Member._make,
    erased=lambda it: it.erased,
)


@rule(MEMBERS)
def register_member(request: commands.RegisterMemberRequest, command: Command, states: States) -> list[Message]:
    must_be_new(states[MEMBERS].get(command.subject_id), "member", command.subject_id)
    personal = events.PersonalData(name=request.name)
    return [events.MemberRegistered(member_id=command.subject_id, version=1, personal=personal)]


@rule(MEMBERS)
def erase_member(request: commands.EraseMemberRequest, command: Command, states: States) -> list[Message]:
    member = MEMBERS.current(states, request, command.subject_id)
    if member.erased:
        raise refusal("MEMBER_ERASED", f"members/{member.id}", "the member was erased")
    return [events.MemberErased(member_id=member.id, version=member.version + 1)]


@change(MEMBERS)
def member_registered(states: States, event: events.MemberRegistered) -> None:
    states[MEMBERS][event.member_id] = Member(event.member_id, event.version, event.personal.name, erased=False)


change_fields(MEMBERS, events.MemberErased, name="", erased=True)
