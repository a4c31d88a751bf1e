#!/usr/bin/env bash
# Builds the checks and the benchmark: build.sh OUT_DIR [ARCH, 90a by default]. Needs nvcc on the PATH.
set -euo pipefail
out=${1:?usage: build.sh OUT_DIR [ARCH]}
arch=${2:-90a}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
pids=()
for file in "$here"/../*.cu; do
  nvcc -O3 -std=c++17 -gencode=arch=compute_$arch,code=sm_$arch -c "$file" -o "$out/$(basename "$file" .cu).o" & pids+=($!)
done
for file in check bench; do
  ${CXX:-g++} -std=c++17 -O2 -Wall -c "$here/$file.cpp" -o "$out/$file.main.o" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
objects=()
for o in "$out"/*.o; do [[ $o == *.main.o ]] || objects+=("$o"); done
nvcc -o "$out/check" "$out/check.main.o" "${objects[@]}" -ldl -lpthread
nvcc -o "$out/bench" "$out/bench.main.o" "${objects[@]}" -ldl -lpthread
