"""Histories of subscriptions, made by the rules themselves while a clock of their own goes on."""

import random
from datetime import timedelta

from google.protobuf.message import Message

from command_server.app import DOMAIN
from command_server.customers import CUSTOMERS
from command_server.subscriptions import ENDED, SUBSCRIPTIONS, Subscription
from commerce.command.v1 import command_service_pb2 as commands
from commerce.event.v1.event_pb2 import Event
from commerce.internal.v1.stored_pb2 import EndSubscriptionRequest
from tandem.commands.batch import decide_batch
from tandem.commands.write_model import States
from tests.support.builders import NOW, command, identity, register_customer, start_subscription, usd

_WHEN = (commands.CANCELLATION_TIME_AT_ONCE, commands.CANCELLATION_TIME_AT_PERIOD_END)


class Subscriptions:
    """Draws one event after the other such that each is possible after those before it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._now = NOW
        self._states = States()

    @property
    def state(self) -> dict[str, Subscription]:
        """As the write model has them after the events."""
        return self._states[SUBSCRIPTIONS]

    def event(self, customers: int) -> Event:
        """The next event, of a subscription of one of the first `customers`."""
        self._now += timedelta(days=self._rng.randint(0, 20))
        going = [it for it in self._states[SUBSCRIPTIONS].values() if it.status not in ENDED]
        if going and self._rng.random() < 0.8:
            request = self._about(self._rng.choice(going))
            if (event := self._decide(request)) is not None:
                return event
        customer = self._rng.randint(1, customers)
        if identity("customer", customer) not in self._states[CUSTOMERS]:
            self._decide(register_customer(customer))
        number = len(self._states[SUBSCRIPTIONS]) + 1
        started = self._decide(start_subscription(number, customer=customer, months=self._rng.choice((1, 1, 12))))
        assert started is not None
        return started

    def _about(self, subscription: Subscription) -> Message:
        name = str(subscription.id)
        requests: list[Message] = [
            commands.RenewSubscriptionRequest(subscription_id=name),
            commands.ChangeSubscriptionPlanRequest(
                subscription_id=name, plan="gold", price=usd(self._rng.randint(0, 9999)), period_months=3
            ),
            commands.CancelSubscriptionRequest(subscription_id=name, when=self._rng.choice(_WHEN), reason="too dear"),
            commands.ResumeSubscriptionRequest(subscription_id=name),
            EndSubscriptionRequest(subscription_id=name, expected_version=subscription.version),
        ]
        return self._rng.choice(requests)

    def _decide(self, request: Message) -> Event | None:
        """None when it is refused."""
        decisions = decide_batch(DOMAIN, [command(request, self._now)], self._states, {})
        self._states = decisions.states
        return decisions.events[0][1] if decisions.events else None
