"""Followers of events that are in the archive."""

from pathlib import Path

import pytest

from tandem.feed.token import decode_token, encode_token
from tests.integration.projector.conftest import Stores
from tests.integration.projector.feed_service.conftest import Refusal, ServeFeed, prices, refused
from tests.support.archiving import archive_all, archived_files, small, small_partitions
from tests.support.follower import Follower, caught_up


async def test_they_are_served_as_from_the_table_or_refused_where_the_archive_is_not(
    stores: Stores, serve_feed: ServeFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    small_partitions(stores.write)
    stores.append(prices(50))
    server = await serve_feed()
    before = await Follower(from_beginning=True, max_batch_events=4).follow(server.stub, caught_up)
    archive_all(stores.write_url, tmp_path)

    expired = await refused(Follower(from_beginning=True).follow(server.stub, caught_up))
    assert (expired.code, expired.reason) == ("OUT_OF_RANGE", "CURSOR_EXPIRED")
    assert decode_token(expired.metadata["oldest_cursor"]).position == 39
    assert (await Follower(after_cursor=expired.metadata["oldest_cursor"]).follow(server.stub, caught_up)).positions

    server = await serve_feed(archive=tmp_path)
    again = Follower(from_beginning=True, max_batch_events=4)
    assert (await again.follow(server.stub, caught_up)).items == before.items
    cursor = decode_token(again.cursor)
    forged = encode_token(cursor.epoch, 10, cursor.mark ^ 1)
    mismatch = Refusal("FAILED_PRECONDITION", "TOKEN_EPOCH_MISMATCH", {})
    assert await refused(Follower(after_cursor=forged).follow(server.stub, caught_up)) == mismatch

    archived_files(tmp_path)[0].unlink()
    server = await serve_feed(archive=tmp_path)
    gone = await refused(Follower(from_beginning=True).follow(server.stub, caught_up))
    assert (gone.code, gone.reason, gone.metadata["position"]) == ("UNAVAILABLE", "EVENTS_MISSING", "1")
