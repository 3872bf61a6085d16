#!/bin/sh
# Downloads, unpacks and checks a data set; run it again after an interruption and it goes on.
#   sh script/prepare_data.sh {spair|pfpascal|pfwillow} [--root DIR] [--check] [--url URL] [--pairs DIR] [--pairs-url URL]
# --root is the folder of the data set itself, by default asset/SPair-71k, asset/pf-pascal or asset/pf-willow.
# Archives stay in the folder `download` beside it until you delete them. PYTHON=... picks the interpreter.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m dataset.prepare "$@"
