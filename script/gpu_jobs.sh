#!/bin/sh
# Runs the commands of docs/gpu.md that are not yet measured, one after the other; one that fails stops no other.
#   sh script/gpu_jobs.sh [FOLDER [PAGE]]     default: asset/gpu, docs/gpu.md
# FOLDER/N.txt holds what command N printed, FOLDER/jobs.txt the commands with how they ended and how long they took.
. "$(dirname "$0")/setup.sh"

folder=${1:-asset/gpu} page=${2:-docs/gpu.md}
mkdir -p "$folder"
: >"$folder/jobs.txt"
PATH="$(dirname "$(command -v "$PYTHON")"):$PATH"
number=0 failed=0
sed -n 's/^| `\([^`]*\)` |.* not yet measured |$/\1/p' "$page" >"$folder/commands.txt"
while read -r command; do
    number=$((number + 1)) begin=$(date +%s) end=done
    echo "== $number: $command"
    sh -c "$command" >"$folder/$number.txt" 2>&1 </dev/null || end="FAILED ($?)" failed=1
    tail -n 3 "$folder/$number.txt"
    echo "$number: $end, $(($(date +%s) - begin)) s: $command" >>"$folder/jobs.txt"
done <"$folder/commands.txt"
printf '\n'
cat "$folder/jobs.txt"
exit $failed
