# Sourced by the other scripts: goes to the repository's root and sets PYTHON to a Python that has what `needs` names
# (files of requirements; default requirements.txt). The current Python is taken if it will do; else a virtual
# environment beside the checkout, made on first use, which shares that Python's packages if it has PyTorch.
set -eu
caller=$PWD
cd "$(dirname "$0")"
while [ ! -f requirements.txt ]; do
    cd ..
    [ "$PWD" != / ] || { echo "setup: cannot find the repository's root from $0" >&2; exit 1; }
done
needs=${needs:-requirements.txt}
torch=

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

find_python() {
    for candidate in "${PYTHON:-}" python python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$candidate"; return; }
    done
    return 1
}

# install_missing: pip's own lines show how far it is. A PyTorch that is shared is named by its version: else the newest
# torchvision brings the PyTorch that it was built for.
install_missing() {
    "$1" -m pip install --disable-pip-version-check $(printf ' -r %s' $needs) $torch >&2
}

make_venv() {
    room=8000000 size="about 6 GB, some minutes"
    if [ -n "$shared" ]; then room=1000000 size="but not PyTorch, which is shared with $PYTHON"; fi
    mkdir -p "$(dirname "$VENV")" || fail "cannot make '$(dirname "$VENV")'; set VENV to a folder you may write"
    free_kb=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 { print $4 }')
    [ -d "$VENV" ] || [ "$free_kb" -ge $room ] ||
        fail "the packages need $((room / 1000000)) GB, but '$(dirname "$VENV")' has $((free_kb / 1000000)) GB free; set VENV to a folder on a larger disk"
    [ -d "$VENV" ] || { say "making a virtual environment in '$VENV'"; "$PYTHON" -m venv "$VENV" ||
        fail "could not make '$VENV'; install Python's venv module, or set VENV to a folder you may write"; }
    if [ -n "$shared" ]; then
        "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' |
            while IFS= read -r site; do echo "$shared" >"$site/shared.pth"; done
    fi
    say "installing $needs into '$VENV' ($size)"
    install_missing "$VENV/bin/python" ||
        fail "pip could not install the requirements (see above). No network, or no disk space? Run this again once that is mended; what is already there is kept."
}

PYTHON=$(find_python) || fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python"
if ! missing=$("$PYTHON" script/check_requirements.py $needs); then
    if [ -z "${VENV:-}" ]; then
        VENV="$(dirname "$PWD")/$(basename "$PWD")-venv"
        [ -d "$VENV" ] || [ -w "$(dirname "$PWD")" ] || VENV="$PWD/.venv"
    fi
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" script/check_requirements.py $needs >/dev/null; then
        say "the current Python ($PYTHON) lacks:"
        echo "$missing" | sed 's/^/setup:   /' >&2
        shared=
        if ! echo "$missing" | grep -q '^torch:'; then
            shared=$("$PYTHON" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))')
            torch=$("$PYTHON" -c 'from importlib import metadata; print("torch==" + metadata.version("torch"))')
        fi
        make_venv
    fi
    PYTHON="$VENV/bin/python"
fi
say "using $PYTHON"
export PYTHON
