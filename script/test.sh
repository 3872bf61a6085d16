#!/bin/sh
# Sets up what is missing, then lint and tests, one process for each core. Arguments go to pytest: sh script/test.sh -k loss
needs="requirements.txt requirements-test.txt"
. "$(dirname "$0")/setup.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest -n auto "$@"
