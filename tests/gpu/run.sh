#!/usr/bin/env bash
# All that needs a GPU, in one go, with one table at the end: tests/gpu/run.sh [STEP...]
#
# Exit code: 0 all that ran has passed, 1 something failed. Without a GPU nothing is run, and the code is 0.
# Results and logs go to $OUT (build/gpu-results). Settings, all from the environment:
#
#   HEADKV_PYTHON, HEADKV_BIN   a Python that has headkv_local with CUDA installed, and the folder of the test programs:
#                               nothing is built then (else: `make install CUDA=1`, see the Makefile on building
#                               without a network)
#   HEADKV_ARCHS                architectures to build for (default: the GPU's)
#   HEADKV_MODEL                model of the checks (default: the default model; they are skipped where it is missing)
#   HEADKV_SHAPE                model of the speed bench (random:llama-3-8b)
#   HEADKV_LENGTHS, HEADKV_LONG its prompt lengths (8192,32768), and those of the steps -long (131072)
#   HEADKV_CHECK_TOKENS         prompt length of the checks mask, splits, turn and memory (4000)
#   HEADKV_STEP_SECONDS         most that one step may take (600)
set -u
cd "$(dirname "$0")/../.."

STEPS="build op gather compute alloc mask mask-q8 splits splits-q8 turn memory layers layers-q8 answers architectures memcheck racecheck initcheck synccheck bench-op bench-speed bench-speed-q8 bench-speed-long bench-speed-q8-long bench-order bench-order-long"

OUT=${OUT:-build/gpu-results}
PYTHON=${HEADKV_PYTHON:-.venv/bin/python}
BIN=${HEADKV_BIN:-build/cuda/bin}
SHAPE=${HEADKV_SHAPE:-random:llama-3-8b}
TOKENS=${HEADKV_CHECK_TOKENS:-4000}
LIMIT=${HEADKV_STEP_SECONDS:-600}

WANTED=${*:-$STEPS}
ROWS=()
FAILED=0

wants() { case " $WANTED " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

row() { # name result remark
    ROWS+=("$(printf '%-19s %-8s %s' "$1" "$2" "$3")")
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$OUT/steps.tsv"
    [ "$2" = failed ] && FAILED=1
    return 0
}

skip() { if wants "$1"; then row "$1" skipped "$2"; fi; }

# name, then a command: its output goes to a log, and the log's last line into the table
step() {
    local name=$1 start=$SECONDS code last
    shift
    wants "$name" || return 0
    echo "== $name: $*" >&2
    timeout --kill-after=10 "$LIMIT" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    last=$(grep -v '^ *$' "$OUT/$name.log" | tail -n 1 | cut -c1-110)
    case $code in
        0) row "$name" passed "$((SECONDS - start)) s: $last" ;;
        124 | 137) row "$name" failed "more than $LIMIT s: $last" ;;
        *) row "$name" failed "exit code $code after $((SECONDS - start)) s: $last" ;;
    esac
    return $code
}

if ! command -v nvidia-smi >/dev/null || ! GPU=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader); then
    echo "no GPU: there is no nvidia-smi that shows one. Not run: $WANTED"
    exit 0
fi

for name in $WANTED; do
    case " $STEPS " in *" $name "*) ;; *) echo "there is no step $name, there are: $STEPS" >&2; exit 2 ;; esac
done
mkdir -p "$OUT"
: >"$OUT/steps.tsv"
echo "$GPU" | tee "$OUT/gpu.txt" >&2

if [ -n "${HEADKV_PYTHON:-}" ] && [ -n "${HEADKV_BIN:-}" ]; then
    skip build "HEADKV_PYTHON and HEADKV_BIN are given"
else
    caps=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | sed 's/\.//; s/ *$/-real/' | paste -sd';')
    CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} step build \
        make install CUDA=1 "CUDA_ARCHS=${HEADKV_ARCHS:-$caps}"
fi

program() { # step, program, arguments...
    local name=$1 file=$BIN/$2
    shift 2
    if [ -x "$file" ]; then step "$name" "$file" "$@"; else skip "$name" "there is no $file"; fi
}
program op test-headkv-attn
program gather test-headkv-gather
program compute test-headkv-compute --gpu
program alloc test-headkv-alloc --gpu

MODEL=${HEADKV_MODEL:-$("$PYTHON" -c 'import headkv_local as h; print(h.default_model_path())' 2>/dev/null)}
check() { # step, arguments of checks.py
    local name=$1
    shift
    if [ -n "$MODEL" ]; then
        step "$name" "$PYTHON" tests/gpu/checks.py "$@" --model "$MODEL" --prompt-tokens "$TOKENS" --json "$OUT/$name.json"
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

step architectures "$PYTHON" tests/gpu/architectures.py

for tool in memcheck racecheck initcheck synccheck; do
    if ! command -v compute-sanitizer >/dev/null; then
        skip "$tool" "there is no compute-sanitizer"
    elif [ ! -x "$BIN/test-headkv-attn" ]; then
        skip "$tool" "there is no $BIN/test-headkv-attn"
    else
        step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$BIN/test-headkv-attn" --quick
    fi
done

# shellcheck disable=SC2046 # several arguments
if wants bench-op; then program bench-op bench-headkv-attn $("$PYTHON" tests/gpu/layer_caps.py); fi

KEPT=$(mktemp -d) # the random model of the speed bench
trap 'rm -rf "$KEPT"' EXIT
speed() { # name, lengths, arguments of headkv bench speed
    local name=$1 lengths=$2
    shift 2
    step "$name" "$PYTHON" -m headkv_local.cli bench speed --model "$SHAPE" --keep-model "$KEPT" --gpu-layers -1 \
        --prompt-tokens "$lengths" --budget 128,512,1024 --short-depth 0 \
        --repeat 1 --compactions 3 --decode-tokens 128 --json "$OUT/$name.json" "$@"
}
for long in "" -long; do
    lengths=${HEADKV_LENGTHS:-8192,32768}
    [ -n "$long" ] && lengths=${HEADKV_LONG:-131072}
    speed bench-speed$long "$lengths"
    speed bench-speed-q8$long "$lengths" --type-k q8_0 --type-v q8_0 --no-rss
    step bench-order$long "$PYTHON" -m headkv_local.cli bench speed --model "$SHAPE" --keep-model "$KEPT" --gpu-layers -1 \
        --order tokens,layers --archive none,memory --prompt-tokens "$lengths" --budget 512 --repeat 1 \
        --json "$OUT/bench-order$long.json"
done

printf '\n%-19s %-8s %s\n' step result remark | tee "$OUT/table.txt"
printf '%s\n' "${ROWS[@]}" | tee -a "$OUT/table.txt"
exit $FAILED
