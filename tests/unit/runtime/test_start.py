"""How a service's process starts."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc
from tandem.runtime.start import import_without

collected_while_imported = gc.isenabled()
with import_without("rich", "json"):
    import json
    try:
        import rich
    except ModuleNotFoundError:
        rich = None

def run():
    import rich as there
    print(collected_while_imported, rich, bool(there), gc.isenabled(), gc.get_freeze_count() > 1000)
    return 7
"""


def test_imports_are_not_looked_through_for_garbage(tmp_path: Path) -> None:
    (tmp_path / "started.py").write_text(PROGRAM)
    statement = f"import json, sys; sys.path.insert(0, {str(tmp_path)!r})"
    result = subprocess.run(
        [sys.executable, "-c", f"{statement}; from tandem.runtime.start import start; start('started')"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout.split()) == (7, ["False", "None", "True", "True", "True"]), result.stderr
