#!/usr/bin/env bash
# All that needs a GPU, in one go, with one table at the end: tests/gpu/run.sh [STEP...]
#
# Exit code: 0 all that ran has passed, 1 something failed, or a STEP that was named was not run. Without a GPU nothing
# is run, and the code is 0. Results and logs go to $OUT (build/gpu-results): steps.tsv as they come, with the step that
# is running, and the table also where this is ended from outside. Settings, all from the environment:
#
#   HEADKV_PYTHON, HEADKV_BIN   a Python that has headkv_local with CUDA installed, and the folder of the test programs:
#                               nothing is built then (else: `make install CUDA=1`, see the Makefile on building
#                               without a network)
#   HEADKV_ARCHS                architectures to build for (default: the GPU's)
#   HEADKV_MODEL                model of the checks (default: the default model; they are skipped where it is missing)
#   HEADKV_SHAPE                model of the speed bench (random:llama-3-8b)
#   HEADKV_LENGTHS, HEADKV_LONG its prompt lengths (8192,32768), and those of the steps -long (131072)
#   HEADKV_CHECK_TOKENS         prompt length of the checks mask, splits, turn and memory (4000)
#   HEADKV_STEP_SECONDS         most that one step may take (480: less than what lends a GPU for ten minutes gives)
set -u
cd "$(dirname "$0")/../.."

STEPS="build op gather compute alloc alloc-archive mask mask-q8 splits splits-q8 turn memory layers layers-q8 answers architectures memcheck racecheck initcheck synccheck bench-op bench-speed bench-speed-q8 bench-speed-long bench-speed-q8-long bench-order bench-order-long"

OUT=${OUT:-build/gpu-results}
PYTHON=${HEADKV_PYTHON:-.venv/bin/python}
BIN=${HEADKV_BIN:-build/cuda/bin}
SHAPE=${HEADKV_SHAPE:-random:llama-3-8b}
TOKENS=${HEADKV_CHECK_TOKENS:-4000}
LIMIT=${HEADKV_STEP_SECONDS:-480}

NAMED=$#
WANTED=${*:-$STEPS}
ROWS=() # name, result, remark
FAILED=0
RUNNING=
BUILT=yes

wants() { case " $WANTED " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# what there is so far; a row more
save() { printf '%s\n' ${ROWS[@]+"${ROWS[@]}"} "$@" | grep . >"$OUT/steps.tsv"; }

row() { # name result remark
    ROWS+=("$(printf '%s\t%s\t%s' "$1" "$2" "$3")")
    save
    if [ "$2" = failed ] || { [ "$2" = skipped ] && [ "$NAMED" -gt 0 ]; }; then FAILED=1; fi
}

# Is the step to be run: it is wanted, and what it would run is not that of an earlier build.
ready() {
    wants "$1" || return 1
    [ "$BUILT" = no ] || return 0
    row "$1" failed "not built"
    return 1
}

skip() { if ready "$1"; then row "$1" skipped "$2"; fi; }

# name, then a command: its output goes to a log, and the log's last line into the table
step() {
    local name=$1 code
    shift
    ready "$name" || return 0
    echo "== $name: $*" >&2
    save "$(printf '%s\trunning\t' "$name")"
    RUNNING=$name STARTED=$SECONDS
    timeout --kill-after=10 "$LIMIT" "$@" >"$OUT/$name.log" 2>&1 </dev/null &
    CHILD=$!
    wait $CHILD
    code=$?
    RUNNING=
    case $code in
        0) row "$name" passed "$(said "$name")" ;;
        124 | 137) row "$name" failed "more than $LIMIT s: $(last "$name")" ;;
        *) row "$name" failed "exit code $code after $(said "$name")" ;;
    esac
    return $code
}

last() { grep -v '^ *$' "$OUT/$1.log" | tail -n 1 | cut -c1-110; }
said() { echo "$((SECONDS - STARTED)) s: $(last "$1")"; }

if ! command -v nvidia-smi >/dev/null || ! GPU=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader); then
    echo "no GPU: there is no nvidia-smi that shows one. Not run: $WANTED"
    exit 0
fi

for name in $WANTED; do
    case " $STEPS " in *" $name "*) ;; *) echo "there is no step $name, there are: $STEPS" >&2; exit 2 ;; esac
done
mkdir -p "$OUT"
save
echo "$GPU" | tee "$OUT/gpu.txt" >&2

KEPT=$(mktemp -d) # the random model of the speed bench
finish() {
    trap - EXIT
    if [ -n "$RUNNING" ]; then # ended from outside
        kill "$CHILD"
        row "$RUNNING" failed "ended after $(said "$RUNNING")"
    fi
    rm -rf "$KEPT"
    local name result remark
    {
        printf '\n%-19s %-8s %s\n' step result remark
        while IFS=$'\t' read -r name result remark; do
            printf '%-19s %-8s %s\n' "$name" "$result" "$remark"
        done <"$OUT/steps.tsv"
    } | tee "$OUT/table.txt"
    exit $FAILED
}
trap finish EXIT
trap 'FAILED=1; exit' HUP INT TERM

if [ -n "${HEADKV_PYTHON:-}" ] && [ -n "${HEADKV_BIN:-}" ]; then
    skip build "HEADKV_PYTHON and HEADKV_BIN are given"
else
    caps=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | sed 's/\.//; s/ *$/-real/' | paste -sd';')
    CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} step build \
        make install CUDA=1 "CUDA_ARCHS=${HEADKV_ARCHS:-$caps}" || BUILT=no
fi

# what runs nothing on a GPU must not pass: --gpu ends a program that sees none
program() { # step, program, arguments...
    local name=$1 file=$BIN/$2
    shift 2
    if [ -x "$file" ]; then step "$name" "$file" --gpu "$@"; else skip "$name" "there is no $file"; fi
}
program op test-headkv-attn
program gather test-headkv-gather
program compute test-headkv-compute
program alloc test-headkv-alloc
program alloc-archive test-headkv-alloc --archive

NO_PYTHON=
"$PYTHON" -c 'import headkv_local' >"$OUT/python.log" 2>&1 || NO_PYTHON="$PYTHON has no headkv_local: $(last python)"
by_python() { # step, arguments of Python...
    local name=$1
    shift
    if [ -z "$NO_PYTHON" ]; then step "$name" "$PYTHON" "$@"; elif ready "$name"; then row "$name" failed "$NO_PYTHON"; fi
}

MODEL=${HEADKV_MODEL:-$("$PYTHON" -c 'import headkv_local as h; print(h.default_model_path())' 2>/dev/null)}
check() { # step, arguments of checks.py
    local name=$1
    shift
    if [ -n "$MODEL$NO_PYTHON" ]; then
        by_python "$name" tests/gpu/checks.py "$@" --model "$MODEL" --prompt-tokens "$TOKENS" --json "$OUT/$name.json"
    else
        skip "$name" "no model: the default one is not installed and HEADKV_MODEL is not set"
    fi
}
for name in mask splits layers; do
    check $name $name
    check $name-q8 $name --type-kv q8_0
done
check turn turn
check memory memory
check answers answers

by_python architectures tests/gpu/architectures.py

for tool in memcheck racecheck initcheck synccheck; do
    if ! command -v compute-sanitizer >/dev/null; then
        skip "$tool" "there is no compute-sanitizer"
    elif [ ! -x "$BIN/test-headkv-attn" ]; then
        skip "$tool" "there is no $BIN/test-headkv-attn"
    else
        step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$BIN/test-headkv-attn" --gpu --quick
    fi
done

if caps=$("$PYTHON" tests/gpu/layer_caps.py 2>"$OUT/bench-op.log"); then
    # shellcheck disable=SC2086 # several arguments
    program bench-op bench-headkv-attn $caps
elif ready bench-op; then
    row bench-op failed "no shapes of heads: $(last bench-op)"
fi

speed() { # name, lengths, arguments of headkv bench speed
    local name=$1 lengths=$2
    shift 2
    by_python "$name" -m headkv_local.cli bench speed --model "$SHAPE" --keep-model "$KEPT" --gpu-layers -1 \
        --prompt-tokens "$lengths" --budget 128,512,1024 --short-depth 0 \
        --repeat 1 --compactions 3 --decode-tokens 128 --json "$OUT/$name.json" "$@"
}
for long in "" -long; do
    lengths=${HEADKV_LENGTHS:-8192,32768}
    [ -n "$long" ] && lengths=${HEADKV_LONG:-131072}
    speed bench-speed$long "$lengths"
    speed bench-speed-q8$long "$lengths" --type-k q8_0 --type-v q8_0 --no-rss
    by_python bench-order$long -m headkv_local.cli bench speed --model "$SHAPE" --keep-model "$KEPT" --gpu-layers -1 \
        --order tokens,layers --archive none,memory --prompt-tokens "$lengths" --budget 512 --repeat 1 \
        --json "$OUT/bench-order$long.json"
done
