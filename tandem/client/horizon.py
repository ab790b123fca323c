"""What a session has written, and so must see: the token that its queries carry."""

import threading
import uuid
from typing import Any, TypeVar

from google.protobuf.message import Message

from commerce.type.v1.consistency_pb2 import Consistency
from tandem.client.errors import CallFailed, TokenOutdated
from tandem.feed.token import MalformedToken, decode_token

M = TypeVar("M", bound=Message)


class Horizon:
    """A consistency token that only moves forward. For any number of threads or tasks.

    monotonic_reads: whether what a query showed is remembered too, so that no later one shows an older state.
    """

    def __init__(self, token: str = "", *, monotonic_reads: bool = False) -> None:
        self._lock = threading.Lock()
        self._token = token
        self._monotonic_reads = monotonic_reads

    @property
    def token(self) -> str:
        """Empty before the first command."""
        return self._token

    def learn(self, token: str) -> None:
        """Includes what another token stands for; an empty one stands for nothing."""
        with self._lock:
            self._token = newest(self._token, token)

    def forget(self, token: str) -> None:
        """Drops the token, unless another one took its place."""
        with self._lock:
            if self._token == token:
                self._token = ""

    def prepare(self, request: M) -> M:
        """The request as it is to be sent.

        A command without request_id is given one, in the caller's own message: sent again it is the same command. A
        query that may be answered from the past (its `consistency` is not set, or has a token) gets the session's token
        too, in a copy; `minimize_latency` and `fully_consistent` stay as they are.
        """
        fields = request.DESCRIPTOR.fields_by_name
        message: Any = request
        if "request_id" in fields and not message.request_id:
            message.request_id = str(uuid.uuid4())
        token = self._token
        if "consistency" not in fields or not token:
            return request
        own: Consistency = message.consistency
        if own.WhichOneof("requirement") in ("minimize_latency", "fully_consistent"):
            return request
        copy: Any = type(request)()
        copy.CopyFrom(request)
        copy.consistency.at_least_as_fresh = newest(token, own.at_least_as_fresh)
        prepared: M = copy
        return prepared

    def answered(self, response: Any) -> None:
        """Remembers a command's receipt and, where that was asked for, how fresh an answer is."""
        fields = response.DESCRIPTOR.fields_by_name
        if "receipt" in fields:
            self.learn(response.receipt.consistency_token)
        elif self._monotonic_reads and "as_of" in fields:
            self.learn(response.as_of)

    def failed(self, request: Any, error: CallFailed) -> None:
        """Forgets a token that can never be reached again: what it stood for may be gone with the restore."""
        if isinstance(error, TokenOutdated) and "consistency" in request.DESCRIPTOR.fields_by_name:
            self.forget(request.consistency.at_least_as_fresh)


def newest(first: str, second: str) -> str:
    """The token that includes the other; `second` where they cannot be compared.

    They cannot when they are of two feeds (a restore lies between them, and the one that came later is the one to go on
    with), or when a newer server writes them in a form that is not known here.
    """
    if not first or not second:
        return first or second
    try:
        return first if decode_token(first).includes(decode_token(second)) else second
    except MalformedToken:
        return second
