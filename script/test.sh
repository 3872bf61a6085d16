#!/bin/sh
# Sets up what is missing, then lint and tests. Extra arguments go to pytest: sh script/test.sh -k loss
. "$(dirname "$0")/setup.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
