"""Print what the running Python lacks of the files of requirements that are given, one line each; exit 1 if anything.

Standard library only.
"""

import re
import sys
from importlib import metadata
from pathlib import Path


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", text).group().split("."))


def find_missing(lines: list[str]) -> list[str]:
    """One line for each requirement `name>=version` that is not met."""
    missing = []
    for line in lines:
        requirement = line.split("#")[0].strip()
        if not requirement:
            continue
        name, _, least = requirement.partition(">=")
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(f"{name}: not installed")
            continue
        if least and parse_version(found) < parse_version(least):
            missing.append(f"{name}: {found} is older than {least}")
    return missing


if __name__ == "__main__":
    missing = [line for file in sys.argv[1:] for line in find_missing(Path(file).read_text().splitlines())]
    print("\n".join(missing))
    sys.exit(bool(missing))
