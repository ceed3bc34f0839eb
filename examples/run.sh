#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Installs what is missing, builds one example in Release and runs it in the caller's directory.
#   examples/run.sh [NAME [arguments...]]        NAME: rag_prefill (default), 01_block_attention, ...

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/cmake/prepare.sh"

example=${1:-rag_prefill}
shift || true
options=()
if [ -e "$root/examples/$example.cu" ]; then
  source "$root/cmake/find_nvcc.sh"
  CUDACXX=$(find_nvcc)
  export CUDACXX
  options=(-D BLOCKATTN_CUDA=ON)
elif [ ! -e "$root/examples/$example.cpp" ] && [ ! -e "$root/examples/$example/CMakeLists.txt" ] &&
  [ ! -e "$root/examples/$example/run.sh" ]; then
  echo "There is no example $example in $root/examples" >&2
  exit 1
fi

install_missing "${build_packages[@]}" python3-pip
if [ -e "$root/examples/$example/run.sh" ]; then exec "$root/examples/$example/run.sh" "$@"; fi
if [ -e "$root/examples/$example/fetch_model.sh" ]; then
  bash "$root/examples/$example/fetch_model.sh"
fi
(
  cd "$root"
  cmake --preset release "${options[@]}"
  cmake --build --preset release --target "$example"
)
"$root/build/release/examples/bin/$example" "$@"
