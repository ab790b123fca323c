"""Reactions, without a store: after these events, this was to be done at once, and this waits.

reacted(unpaid_orders, placed).waits(CancelUnpaidOrderRequest(order_id=…), for_=timedelta(days=14))
reacted(unpaid_orders, placed, paid).waits_for_nothing()
reacted(low_stock, placed).did(Post("product.stock_low", product_id, {...}))
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from google.protobuf.message import Message

from tandem.reactions.reaction import At, Do, Post, Reaction
from tandem.testing.rules import NOW


class Reacted:
    """What some events of one aggregate have led to."""

    def __init__(self, reaction: Reaction, done: Sequence[Do | Post], timer: At | None, at: datetime) -> None:
        self._delay = reaction.delay
        self._at = at
        self.done = list(done)
        self.timer = timer

    def did(self, *effects: Do | Post) -> "Reacted":
        """All that was to be done at once, in order. Raises AssertionError."""
        assert self.done == list(effects), f"at once: {self.done}"
        return self

    def waits(self, command: Message, for_: timedelta) -> "Reacted":
        """The command is given so long after the events were stored. Raises AssertionError."""
        assert self.timer is not None, "nothing waits"
        assert self.timer.command == command, f"what waits is {self.timer.command}"
        due = self.timer.moment + self._delay
        assert due == self._at + for_, f"it waits until {due.isoformat()}, for {due - self._at}"
        return self

    def waits_for_nothing(self) -> "Reacted":
        """Raises AssertionError."""
        assert self.timer is None, f"{self.timer} waits"
        return self


def reacted(reaction: Reaction, *events: Message, at: datetime = NOW) -> Reacted:
    """events: that the reaction takes, of one aggregate, in their order. at: when all of them were stored."""
    done: list[Do | Post] = []
    timer: At | None = None
    for event in events:
        timer = None
        for effect in reaction.react(event, at):
            if isinstance(effect, At):
                timer = effect
            else:
                done.append(effect)
    return Reacted(reaction, done, timer, at)
