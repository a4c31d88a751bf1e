#!/usr/bin/env bash
# Finds a CUDA compiler, or puts one into DIR without root, and prints the environment to build with:
#   eval "$(scripts/cuda-toolkit.sh target/cuda)" && cargo build --release --features cuda
# The machine that builds needs no GPU and no driver: libraries are linked against empty stubs made from cudarc's own
# lists of functions. The real ones are found when the program runs; scripts/cuda-libs.sh says where they are.
set -euo pipefail
dir=${1:?usage: cuda-toolkit.sh DIR}
mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
cd "$(dirname "$0")/.."

nvcc=$(command -v nvcc || true)
[[ -z $nvcc && -x /usr/local/cuda/bin/nvcc ]] && nvcc=/usr/local/cuda/bin/nvcc
if [[ -n $nvcc && $nvcc != "$dir"/* ]]; then
  root=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
else
  root=$dir/nvidia/cu13
  if [[ ! -x $root/bin/nvcc ]]; then
    tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
    python3 -m pip download -q --no-deps -d "$tmp" \
      nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
      nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
    for wheel in "$tmp"/*.whl; do python3 -m zipfile -e "$wheel" "$dir"; done
    chmod +x "$root"/bin/* "$root"/nvvm/bin/*
    ln -sf libcudart.so.13 "$root/lib/libcudart.so"
  fi
fi

stubs=$dir/stubs
if [[ ! -e $stubs/libcublasLt.so ]]; then
  mkdir -p "$stubs"
  cudarc=$(cargo metadata --format-version 1 --all-features --locked | python3 -c '
import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
  stub() { # module, library, soname
    cat "$cudarc"/src/"$1"/sys/*.rs | grep -ohE 'fn +(cu|nvrtc|curand|cublas)[A-Za-z0-9_]+' | awk '{print "void "$2"(void){}"}' |
      sort -u | "${CC:-cc}" -shared -fPIC -xc -w -Wl,-soname,"$3" -o "$stubs/lib$2.so" -
  }
  stub driver cuda libcuda.so.1
  stub nvrtc nvrtc libnvrtc.so.13
  stub curand curand libcurand.so.10
  stub cublas cublas libcublas.so.13
  stub cublaslt cublasLt libcublasLt.so.13
  [[ -e $root/lib/libcudart.so ]] && ln -sf "$root/lib/libcudart.so" "$stubs/libcudart.so"
fi

# candle compiles its own kernels for one card only; ours are compiled for all that CUDA_ARCHS names (kernels/build.rs).
cat <<EOF
export CUDA_HOME="$root" CUDA_PATH="$root" CUDA_ROOT="$root" CUDA_TOOLKIT_ROOT_DIR="$root" NVCC="$root/bin/nvcc"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} PATH="$root/bin:\$PATH" LIBRARY_PATH="$stubs\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
EOF
