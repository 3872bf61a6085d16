# Sourced by the other scripts: goes to the repository's root and sets PYTHON to a Python that meets requirements.txt.
# The current Python is taken if it does; else a virtual environment beside the checkout, made on first use.
set -eu
caller=$PWD
cd "$(dirname "$0")"
while [ ! -f requirements.txt ]; do
    cd ..
    [ "$PWD" != / ] || { echo "setup: cannot find the repository's root from $0" >&2; exit 1; }
done

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

find_python() {
    for candidate in "${PYTHON:-}" python python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$candidate"; return; }
    done
    return 1
}

make_venv() {
    mkdir -p "$(dirname "$VENV")" || fail "cannot make $(dirname "$VENV"); set VENV to a folder you may write"
    free_kb=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 { print $4 }')
    [ -d "$VENV" ] || [ "$free_kb" -ge 10000000 ] ||
        fail "the packages need about 10 GB, but $(dirname "$VENV") has $((free_kb / 1000000)) GB free; set VENV=/a/larger/disk/venv"
    [ -d "$VENV" ] || { say "making a virtual environment in $VENV"; "$PYTHON" -m venv "$VENV" ||
        fail "could not make $VENV; install Python's venv module, or set VENV to a folder you may write"; }
    say "installing requirements.txt into $VENV (about 5 GB on first use, some minutes)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
        fail "pip could not install the requirements (see above). No network, or no disk space? Run this again once that is mended; what is already there is kept."
}

PYTHON=$(find_python) || fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python"
if ! missing=$("$PYTHON" script/check_requirements.py); then
    if [ -z "${VENV:-}" ]; then
        VENV="$(dirname "$PWD")/$(basename "$PWD")-venv"
        [ -d "$VENV" ] || [ -w "$(dirname "$PWD")" ] || VENV="$PWD/.venv"
    fi
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" script/check_requirements.py >/dev/null; then
        say "the current Python ($PYTHON) lacks:"
        echo "$missing" | sed 's/^/setup:   /' >&2
        make_venv
    fi
    PYTHON="$VENV/bin/python"
fi
say "using $PYTHON"
export PYTHON
