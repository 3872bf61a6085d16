#!/bin/sh
# Downloads, unpacks and checks a data set; run it again after an interruption and it goes on.
#   sh script/prepare_data.sh {spair|pfpascal|pfwillow|ap10k|spairu|cub} [--root DIR] [--check] [--url URL] [--pairs DIR] [--pairs-url URL]
# --root is DATASET.ROOT, the folder that holds SPair-71k/, pf-pascal/ and pf-willow/ (default: asset/dataset).
# Archives stay in its folder `download` until you delete them. Needs a few small packages, no PyTorch.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
venv=${VENV:-$repository-venv}

is_enough() {
    "$1" -c 'import dataset.prepare, huggingface_hub, scipy.io' 2>/dev/null
}

for candidate in "${PYTHON:-}" python python3 "$venv/bin/python"; do
    is_enough "$candidate" && exec "$candidate" -m dataset.prepare "$@"
done
echo "prepare_data: installing the packages that it needs (about 200 MB) into $venv" >&2
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
grep -E '^(numpy|scipy|pillow|tqdm|huggingface_hub|pandas|safetensors)\b' "$repository/requirements.txt" >"$venv/data.txt"
"$venv/bin/python" -m pip install --disable-pip-version-check -r "$venv/data.txt"
exec "$venv/bin/python" -m dataset.prepare "$@"
