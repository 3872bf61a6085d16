#!/bin/sh
# Downloads, unpacks and checks a data set; run it again after an interruption and it goes on.
#   sh script/prepare_data.sh {spair|pfpascal|pfwillow} [--root DIR] [--check] [--url URL] [--pairs DIR] [--pairs-url URL]
# --root is the folder of the data set itself, by default its usual name in asset/dataset.
# Archives stay in the folder `download` beside it until you delete them.
. "$(dirname "$0")/setup.sh"
repository=$PWD
cd "$caller"
PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m dataset.prepare "$@"
