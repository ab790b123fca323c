"""A server's reactions, and how they end."""

import asyncio
import base64
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import SecretStr

from tandem.feed.archive import Archive
from tandem.reactions.running import Reactions
from tandem.reactions.settings import ReactionSettings, WebhookSettings
from tandem.runtime.settings import DatabaseSettings
from tandem.testing.stack import PATIENCE


class Late(threading.Event):
    """It is cleared by somebody who is slower than whoever sets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self._was_set = threading.Event()

    def set(self) -> None:
        super().set()
        self._was_set.set()

    def clear(self) -> None:
        self.asked.set()
        assert self._was_set.wait(PATIENCE)
        super().clear()


async def test_a_stop_that_comes_when_webhooks_begin_to_look_waits_for_no_next_look(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{base64.b64encode(bytes(32)).decode()}")
    reacting = Reactions(
        DatabaseSettings(url=SecretStr("postgresql://nowhere")),
        SimpleNamespace(put_all=None),
        [],
        ReactionSettings(poll_seconds=60),
        webhook=WebhookSettings(url="http://127.0.0.1:9", secret_files=[secret]),
        archive=Archive(None),
        keep=timedelta(days=7),
    )
    nothing: Any = SimpleNamespace(post_due=lambda: False)
    reacting.webhooks, reacting._posts = nothing, Late()
    reacting._threads[1].start()
    assert await asyncio.to_thread(reacting._posts.asked.wait, PATIENCE)
    stopping = asyncio.ensure_future(reacting.stop())
    ended, _ = await asyncio.wait([stopping], timeout=20)
    reacting._posts.set()
    await stopping
    assert ended
