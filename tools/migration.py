"""Writes the migration that a new view needs into projector/migrations: `make migration NAME=product_rating`."""

import sys

from projector.app import MIGRATIONS
from tandem.read_store.tables import READ, metadata
from tandem.testing.migrations import NotPlain, write_migration


def main(name: str) -> int:
    try:
        path = write_migration(MIGRATIONS, READ, metadata, name)
    except NotPlain as error:
        print(f"This migration is to be written by hand (docs/migrations.md), since it makes no new table:\n{error}")
        return 1
    print(f"wrote {path}" if path else "The migrations make all tables that are described: nothing to write.")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
