"""What a relay asks of Kafka's client."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from tandem.relay.kafka import KafkaSink
from tandem.relay.settings import KafkaSettings
from tandem.relay.sink import Origin, SinkRefused


async def test_what_the_client_itself_refuses_a_person_has_to_mend(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    settings = KafkaSettings(protocol="ssl", ca_file=file)
    sink = KafkaSink(settings, relay="one", first_position=1, personal_data="sealed")
    with pytest.raises(SinkRefused, match=r"ssl\.ca\.location failed"):
        await sink.place(Origin(uuid.uuid4(), 1))
    await sink.close()


async def test_the_group_that_a_right_is_given_for_is_the_same_for_all_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []

    class Asked(Exception):
        """Nothing more is needed."""

    def consumer(config: dict[str, Any]) -> None:
        groups.append(config["group.id"])
        raise Asked

    monkeypatch.setattr("tandem.relay.kafka.Consumer", consumer)
    for relay in ("one", "two"):
        sink = KafkaSink(KafkaSettings(topic="t"), relay=relay, first_position=1, personal_data="sealed")
        with pytest.raises(Asked):
            await sink.place(Origin(uuid.uuid4(), 1))
        await sink.close()
    assert groups == ["t-relay"] * 2
