"""python -m tests.golden [NAME...]: measure the values whose names begin so, and write them to values.json."""

import json
import sys
import tempfile
from pathlib import Path

from tests.conftest import build_world
from tests.golden import VALUES, measure

if __name__ == "__main__":
    names = tuple(sys.argv[1:]) or ("",)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(build_world(Path(folder)), Path(folder) / "output", lambda name: name.startswith(names))
    values = {**(json.loads(VALUES.read_text()) if VALUES.exists() else {}), **found}
    lines = [f"{json.dumps(name)}: {json.dumps(values[name])}" for name in sorted(values)]
    VALUES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print("\n".join(sorted(found)))
