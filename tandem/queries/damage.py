"""What is read of a view is checked before it is sent: a row that somebody else has changed fails the calls that want
it, and no others.
"""

from google.protobuf.message import DecodeError, Message

from tandem.read_store.damage import report_damage
from tandem.runtime.errors import Unavailable

# Until somebody has rebuilt the views.
_RETRY_SECONDS = 5.0


class RowCheck:
    """Knows a row of a view: it holds the view's message, and that has the row's id where its first field is an id.

    For any thread. A check takes 1 µs.
    """

    def __init__(self, view: str, message: type[Message]) -> None:
        first = message.DESCRIPTOR.fields_by_number[1].name
        self._view = view
        self._message = message
        self._id_field = first if first.endswith("_id") else ""

    def failure(self, value: bytes, key: str = "") -> Unavailable | None:
        """What to tell who wants this row; None for one that is as it should be. A damaged one is counted and logged.

        key: the row's, in 32 hexadecimal digits, where it is known.
        """
        try:
            message = self._message.FromString(value)
        except DecodeError:
            found = None
        else:
            if not key or not self._id_field:
                return None
            found = getattr(message, self._id_field).replace("-", "").lower()
        if key and found == key:
            return None
        report_damage(self._view, key)
        metadata = {"view": self._view, "key": key} if key else {"view": self._view}
        return Unavailable(
            f"a row of the view {self._view} is damaged",
            reason="ROW_DAMAGED",
            retry_after=_RETRY_SECONDS,
            metadata=metadata,
        )
