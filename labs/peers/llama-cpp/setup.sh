#!/usr/bin/env bash
# Builds llama.cpp (server and perplexity) from the Python package llama-cpp-python, natively, in DIR. Ten minutes on two
# cores. Usage: labs/peers/llama-cpp/setup.sh DIR
set -euo pipefail

package=llama-cpp-python==0.3.36
mkdir -p "${1:?usage: setup.sh DIR}"
dir=$(cd "$1" && pwd)

if [[ ! -x $dir/tools/bin/ninja ]]; then
  python3 -m venv "$dir/tools"
  "$dir/tools/bin/pip" install -q cmake ninja scikit-build-core flit-core
fi
export PATH="$dir/tools/bin:$PATH"
if ! compgen -G "$dir/llama_cpp_python-*/vendor" >/dev/null; then
  "$dir/tools/bin/pip" download -q --no-deps --no-build-isolation --no-binary :all: -d "$dir" "$package"
  tar -xzf "$dir"/llama_cpp_python-*.tar.gz -C "$dir"
fi
source=$(echo "$dir"/llama_cpp_python-*/vendor/llama.cpp)
cmake -S "$source" -B "$dir/llama" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF >/dev/null
cmake --build "$dir/llama" --target llama-server llama-perplexity llama-quantize
head -c 20000 "$source/tools/server/README-dev.md" >"$dir/text.txt"
echo "$dir/llama/bin"
