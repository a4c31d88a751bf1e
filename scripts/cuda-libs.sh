#!/usr/bin/env bash
# Finds the CUDA run-time libraries that a binary built with `cuda` opens when it starts on a GPU (cuBLAS, cuBLASLt,
# cuRAND, NVRTC), or fetches them from PyPI into DIR, and prints where they are:
#   eval "$(scripts/cuda-libs.sh)" && target/release/aisp-serve --device cuda
# The driver is the system's; own kernels need cuBLASLt only for `library-gemm` and `activations-fp8`, the candle baseline
# needs all four.
set -euo pipefail
dir=${1:-$(cd "$(dirname "$0")/.." && pwd)/target/cuda}
wanted=(libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libnvrtc.so.13)

complete() { # folder
  local library
  for library in "${wanted[@]}"; do [[ -e $1/$library ]] || return 1; done
}

folders=()
while read -r folder; do [[ -n $folder ]] && folders+=("$folder"); done < <(
  tr ':' '\n' <<<"${LD_LIBRARY_PATH:-}"
  ldconfig -p 2>/dev/null | sed -n 's|.*=> \(.*\)/libcublas\.so\.13$|\1|p'
  printf '%s\n' "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/cuda/lib64 "$dir/nvidia/cu13/lib"
  # Beside a PyTorch that brings its own.
  python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"] + "/nvidia/cu13/lib")' 2>/dev/null || true
)
for folder in "${folders[@]}"; do
  if complete "$folder"; then
    echo "export LD_LIBRARY_PATH=\"$folder\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
    exit
  fi
done

echo "fetching the CUDA run-time libraries into $dir" >&2
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
python3 -m pip download -q --no-deps -d "$tmp" nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88 >&2
mkdir -p "$dir"
for wheel in "$tmp"/*.whl; do python3 -m zipfile -e "$wheel" "$dir"; done
complete "$dir/nvidia/cu13/lib" || { echo "cuda-libs.sh: the wheels lack a library of ${wanted[*]}" >&2; exit 1; }
echo "export LD_LIBRARY_PATH=\"$dir/nvidia/cu13/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
