"""moto's server, an emulator of AWS, and what consumers of an event bus find in it. It is not AWS."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tandem.cli.child import HOST, Child
from tandem.testing.ports import free_port
from tandem.testing.stack import kill

REGION = "eu-central-1"


class MotoServer(Child):
    """moto, an emulator of EventBridge, DynamoDB and CloudWatch Logs; it keeps nothing."""

    def __init__(self) -> None:
        super().__init__("moto", free_port(), Path(os.devnull))

    def launch(self) -> None:
        self._spawn([sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self.port)])


@contextmanager
def moto() -> Iterator[MotoServer]:
    """While it runs, this process takes it for AWS: as AWS has it, by variables of the environment."""
    server = MotoServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{server.address}",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }.items():
            patch.setenv(name, value)
        try:
            server.start()
            yield server
        finally:
            if server.exit_code() is None:
                kill(server)


def client(service: str) -> Any:
    return boto3.client(service, region_name=REGION)


def make_bus(bus: str, pattern: dict[str, Any] | None = None) -> None:
    """A bus, unless it is there, all of whose events that fit a rule go to a log group of its name."""
    events, logs = client("events"), client("logs")
    try:
        events.create_event_bus(Name=bus)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceAlreadyExistsException":
            raise
        return
    logs.create_log_group(logGroupName=bus)
    events.put_rule(Name=bus, EventBusName=bus, EventPattern=json.dumps(pattern or {"source": [{"exists": True}]}))
    arn = f"arn:aws:logs:{REGION}:123456789012:log-group:{bus}"
    events.put_targets(Rule=bus, EventBusName=bus, Targets=[{"Id": "log", "Arn": arn}])


def empty(bus: str) -> None:
    """What its consumer has been handed."""
    logs = client("logs")
    logs.delete_log_group(logGroupName=bus)
    logs.create_log_group(logGroupName=bus)


def handed_on(bus: str) -> list[dict[str, Any]]:
    """All that its consumer was handed, as it came."""
    found = []
    for page in client("logs").get_paginator("filter_log_events").paginate(logGroupName=bus):
        found += [json.loads(it["message"]) for it in page["events"]]
    return found
