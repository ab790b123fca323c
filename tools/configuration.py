"""Writes docs/configuration.md from the settings: `make docs`."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

import command_server.settings
import projector.settings
import query_server.settings
import relay.settings
from tandem.runtime.settings import CONFIG_VARIABLE, Block, ServiceSettings, block_of

_SERVICES: tuple[tuple[str, type[ServiceSettings]], ...] = (
    ("Command server", command_server.settings.Settings),
    ("Projector", projector.settings.Settings),
    ("Query server", query_server.settings.Settings),
    ("Relay", relay.settings.Settings),
)

_HEAD = f"""# Configuration

<!-- Generated from the settings by `make docs`. -->

Each service reads its settings from the environment, over a TOML file that `{CONFIG_VARIABLE}` names, over the defaults
below. The file has one section for each service, and one file may serve all:

```toml
[command]
server = {{ port = 50051 }}

[command.database]
url = "postgresql://tandem@db.internal/write"
password_file = "/run/secrets/write-password"
```

The same in the environment is `TANDEM_COMMAND_SERVER__PORT=50051` and so on: the service, then the path in the file in
capitals, with `__` between its parts. Lists are JSON: `TANDEM_PROJECTOR_CACHE_NODES='["10.0.0.7:11211"]'`.

`tandem up` hands all of these on to the services that it starts, but for the ports and stores that it gives them
itself.

A name that is not below is an error, in the file and in the environment, and so is a value that does not fit. A service
that finds one starts nothing, names every wrong key on standard error, and ends with exit code 2. Secrets never show in
logs.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD]
    for title, settings in _SERVICES:
        parts.append(f"## {title}: the section `[{settings.section}]`\n\n| setting | default | |\n|---|---|---|\n")
        parts += [
            f"| `{name}` | {_default(default)} | {description} |\n" for name, default, description in describe(settings)
        ]
        parts.append("\n")
    return "\n".join([parts[0], "".join(parts[1:])]).rstrip() + "\n"


def describe(settings: type[ServiceSettings]) -> list[tuple[str, str, str]]:
    """(environment name, default as one writes it, description) of every setting, for the documentation."""
    return _describe(settings, f"TANDEM_{settings.section.upper()}_", {}, "required")


def _describe(
    model: type[BaseModel], prefix: str, defaults: Mapping[str, Any], required: str
) -> list[tuple[str, str, str]]:
    """`defaults`: what the block around says, over the fields' own. `required`: what to say of a field without any."""
    rows = []
    for name, field in model.model_fields.items():
        default = defaults.get(name, field.get_default())
        block = block_of(field.annotation)
        if block is not None:
            given = default if isinstance(default, Block) else None
            if default is None:
                # Otherwise the block's fields say all.
                rows.append((f"{prefix}{name.upper()}__…", "none", field.description or ""))
            without = required if default is not None else f"required with {name}"
            inner = {part: getattr(given, part) for part in given.model_fields_set} if given is not None else {}
            rows += _describe(block, f"{prefix}{name.upper()}__", inner, without)
        else:
            missing = field.is_required() and name not in defaults
            rows.append((prefix + name.upper(), required if missing else _written(default), field.description or ""))
    return rows


def _written(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _default(text: str) -> str:
    return text if text.startswith(("required", "none")) else f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(render())
