"""`python -m tandem.contract` prints the folder that protoc is to search for the engine's part of a contract:
`import "tandem/type/v1/receipt.proto"`.
"""

import sys
from pathlib import Path


def folder() -> Path:
    """Beside the package where it is installed, and in proto/ of a checkout."""
    beside = Path(__file__).parents[1]
    return beside if (beside / "tandem/type/v1/receipt.proto").exists() else beside / "proto"


if __name__ == "__main__":
    sys.stdout.write(f"{folder()}\n")
