import pytest
from pydantic import SecretStr, ValidationError

from projector.settings import Settings
from tandem.runtime.settings import DatabaseSettings


def settings(*nodes: str) -> Settings:
    database = DatabaseSettings(url=SecretStr("postgresql://tandem@db/tandem"))
    return Settings(feed_database=database, read_database=database, cache_nodes=nodes)


def test_nodes_keep_their_order() -> None:
    assert settings("b:11211", "a:11211").cache_nodes == ("b:11211", "a:11211")


def test_there_may_be_no_cache() -> None:
    assert settings().cache_nodes == ()


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (["cache"], "'cache' is not host:port"),
        (["cache:0"], "'cache:0' is not host:port"),
        (["unix:cache"], "'unix:cache' is not unix:/path"),
        (["a:11211", "a:11211"], "names a node twice"),
    ],
)
def test_nodes_that_cannot_be_are_refused(nodes: list[str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(*nodes)


def test_more_nodes_than_an_announcement_can_name_are_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="too many cache nodes"):
        settings(*(f"cache-{number}.cache.svc.cluster.local:11211" for number in range(40)))
