#!/bin/sh
# Everything of docs/gpu.md and docs/performance.md that waits for a GPU, in three parts of less than ten minutes each.
#   sh script/gpu_jobs.sh --part 1 --output DIR [--wheels FOLDER] [--device cuda] [--quick]
# --part: 1 training and localisers, 2 compilation and layout, 3 test, precision and the mini world; or all.
# --wheels: packages from script/wheels.sh, for a machine without network. --quick: tiny settings, to try the script.
# A part starts with a smoke test of some seconds; after that a job that fails or runs past its limit stops no other,
# and what does not fit into a part's time is left out.
# Written to DIR: partN.md (table rows and how each job ended), partN.json (every result), partN.log (all output).
set -u
cd "$(dirname "$0")/.." || exit 1

part=all output=${OUT:-} wheels= device=cuda quick=
while [ $# -gt 0 ]; do
    case $1 in
        --part) part=$2; shift ;;
        --output) output=$2; shift ;;
        --wheels) wheels=$2; shift ;;
        --device) device=$2; shift ;;
        --quick) quick=1 ;;
        *) echo "gpu_jobs: unknown argument $1 (see the head of this script)" >&2; exit 2 ;;
    esac
    shift
done
case $part in 1 | 2 | 3 | all) ;; *) echo "gpu_jobs: --part must be 1, 2, 3 or all; got $part" >&2; exit 2 ;; esac
[ -n "$output" ] || { echo "gpu_jobs: --output DIR is missing" >&2; exit 2; }
mkdir -p "$output" || exit 1
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
PYTHON=${PYTHON:-$(command -v python3 || command -v python)}

if [ -n "$wheels" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target "$work/site" "$wheels"/*.whl || exit 1
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TQDM_DISABLE=1

part_seconds=585 patience=1
[ -z "$quick" ] || part_seconds=3600 patience=6  # on a busy laptop

# job NAME SECONDS COMMAND...
job() {
    name=$1 limit=$(($2 * patience))
    shift 2
    begin=$(date +%s)
    left=$((part_begin + part_seconds - begin))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 10 ]; then
        echo "| $name | left out: no time | 0 s |" | tee -a "$work/status"
        return 1
    fi
    printf '\n== %s\n%s\n' "$name" "$*" >>"$log"
    timeout "$limit" "$@" >"$work/out" 2>&1 </dev/null
    status=$?
    cat "$work/out" >>"$log"
    if grep -q '^| command ' "$work/out"; then
        grep -E '^\| (`|its)' "$work/out" >>"$work/rows"
    elif grep -q '^|' "$work/out"; then
        { printf '\n%s\n\n' "$name"; grep '^|' "$work/out" ; } >>"$work/tables"
    fi
    case $status in 0) end=done ;; 124 | 137) end="stopped after $limit s" ;; *) end="FAILED ($status)" ;; esac
    echo "| $name | $end | $(($(date +%s) - begin)) s |" | tee -a "$work/status"
    [ "$status" -eq 0 ] || tail -n 3 "$work/out"
    return "$status"
}

benchmark() {  # NAME SECONDS MODE FLAGS...
    name=$1 limit=$2
    shift 2
    job "$name" "$limit" "$PYTHON" script/benchmark.py "$@" --device "$device" --markdown --output "$work/json/$name.json"
}

smoke() {
    job smoke 60 "$PYTHON" script/benchmark.py train --network mini --device "$device" --batch_size 2 --pairs 4 \
        --repeats 1 --steps 1 DATASET.NUM_WORKERS 0
}

if [ -n "$quick" ]; then
    full="--network mini --image_size 64 --batch_size 2 --pairs 4 --repeats 1 --steps 1" few=$full batch_9= batch_3=
    rounds="--repeats 1" steps=2 pairs="12 --settings fp32 bf16" big=
else
    full="--network sd2-1-random --pairs 8" few="$full --repeats 3 --steps 2" batch_9="--batch_size 9"
    rounds="--repeats 5" steps=100 pairs=400 batch_3="--batch_size 3"
    big="NETWORK.INIT random NETWORK.NAME sd2-1 DATASET.IMAGE_SIZE [768,768] TRAIN.BATCH_SIZE 3"
fi

# shellcheck disable=SC2086  # the settings above are lists of words
part_1() {
    benchmark train_9 140 train $few $batch_9
    benchmark train_3 100 train $few $batch_3
    benchmark train_3_recompute 100 train $few $batch_3 NETWORK.RECOMPUTE True
    job train_profile 90 "$PYTHON" script/benchmark.py train $full $batch_9 --device "$device" --profile
    benchmark localise 60 localise $full $rounds
    job gpu_tests 60 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests
}

# shellcheck disable=SC2086
part_2() {
    benchmark train_9_contiguous 120 train $few $batch_9 NETWORK.MEMORY_FORMAT contiguous
    benchmark train_9_compiled 200 train $few $batch_9 NETWORK.COMPILE default
    benchmark train_9_graphs 220 train $few $batch_9 NETWORK.COMPILE reduce-overhead
}

# shellcheck disable=SC2086
part_3() {
    data="DATASET.ROOT $work/data" mini=config/mini/sd4match_cpm.yaml
    benchmark test 120 test $few
    benchmark features 80 features $few
    [ -n "$quick" ] && data="DATASET.ROOT $work/data DATASET.IMAGE_SIZE [64,64] VAL.PICTURES 0 TEST.ENSEMBLE 1"
    job render_mini 100 "$PYTHON" -m mini.render --root "$work/data" --only spair || return 0
    job precision 100 "$PYTHON" script/precision.py --config_file $mini --pairs $pairs --output "$work/json/precision.json" \
        --opts DEVICE "$device" OUTPUT_ROOT "$work/precision" $data
    for precision in bf16 fp16; do
        job "mini_$precision" 70 "$PYTHON" train.py --config_file $mini DEVICE "$device" $data PRECISION $precision \
            OUTPUT_ROOT "$work/$precision" TRAIN.MAX_STEPS $steps TRAIN.LOG_EVERY 50
    done
    job full_size 70 "$PYTHON" train.py --config_file $mini DEVICE "$device" $data OUTPUT_ROOT "$work/full" $big \
        DATASET.CATEGORY bicycle TRAIN.MAX_STEPS 20 VAL.PICTURES 0 TRAIN.LOG_EVERY 5
}

# What a part left, in three files.
collect() {
    {
        printf '| command | device | ours | reference | ratio | TFLOP ours / reference | share of matmul peak | peak memory |\n'
        printf '|---|---|---|---|---|---|---|---|\n'
        cat "$work/rows" "$work/tables"
        printf '\n| job | end | time |\n|---|---|---|\n'
        cat "$work/status"
    } >"$output/part$1.md"
    "$PYTHON" - "$work/json" >"$output/part$1.json" <<'PY'
import json, pathlib, sys
print(json.dumps({path.stem: json.loads(path.read_text()) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}))
PY
}

failures=0
for number in $([ "$part" = all ] && echo 1 2 3 || echo "$part"); do
    rm -rf "$work/json"; mkdir "$work/json"; : >"$work/rows"; : >"$work/tables"; : >"$work/status"; part_begin=$(date +%s); log=$output/part$number.log; : >"$log"
    echo "== part $number"
    (nvidia-smi; "$PYTHON" -c 'import torch, diffusers, transformers; print(torch.__version__, diffusers.__version__, transformers.__version__)') >>"$log" 2>&1
    if smoke; then
        "part_$number"
    else
        echo "gpu_jobs: the smoke test failed; see $log" >&2
    fi
    collect "$number"
    grep -qv '| done |' "$work/status" && failures=1
    cat "$output/part$number.md"
done
exit "$failures"
