#!/bin/sh
# Collects the packages that a machine with PyTorch but without network lacks, as wheels, in the versions installed here.
#   sh script/wheels.sh [FOLDER [PACKAGE ...]]     default: .wheels, and the packages below
# On that machine: sh script/gpu_jobs.sh --wheels FOLDER, or by hand
#   python -m pip install --no-index --no-deps --target SITE FOLDER/*.whl && export PYTHONPATH=SITE
# PyTorch, NumPy and other compiled packages are taken from the machine; name what else it lacks, such as
# huggingface_hub or tensorboard (pure Python only). FOLDER is emptied first.
. "$(dirname "$0")/setup.sh"

folder=${1:-.wheels}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- diffusers transformers accelerate yacs importlib_metadata
mkdir -p "$folder"
rm -f "$folder"/*.whl
for package in "$@"; do
    version=$("$PYTHON" -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$package") ||
        fail "$package is not installed here; pip install it first"
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --platform any \
        --dest "$folder" "$package==$version" || fail "no pure-Python wheel of $package $version was found"
done
du -ch "$folder"/*.whl
