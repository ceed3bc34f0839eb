#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Builds and runs everything that needs a GPU, on a machine with a CUDA device and no network.
#   tests/run_gpu.sh [PREFIX] [--quick]
# Needs nvcc 12.4 or newer (on the PATH or in /usr/local/cuda/bin), g++, and the headers of Eigen, xsimd and Catch2
# (version 2, which is one header, or an installed version 3): where the machine lacks them, PREFIX names a
# folder with include/eigen3, include/xsimd and include/catch2. Prints the test results, what compute-sanitizer found, and
# the table of figures. --quick leaves out the sanitizers. Objects go to build/gpu.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source cmake/find_nvcc.sh

prefix=
quick=
for argument in "$@"; do
  if [ "$argument" = --quick ]; then quick=yes; else prefix=$argument; fi
done
nvcc=$(find_nvcc)
build=build/gpu
mkdir -p "$build"

includes=(-Iinclude -Itests)
for place in /usr ${prefix:+"$prefix"}; do
  for folder in "$place/include/eigen3" "$place/include"; do
    # The compiler searches /usr/include anyway; naming it would reorder its own headers.
    if [ -d "$folder" ] && [ "$folder" != /usr/include ]; then includes+=(-isystem "$folder"); fi
  done
done
finds() {
  echo "#include <$1>" | g++ -x c++ -std=c++20 "${includes[@]}" -E - >/dev/null 2>&1
}
libraries=()
catch2=catch2/catch.hpp
if finds catch2/catch_all.hpp; then  # tests/support/catch.hpp prefers it
  catch2=catch2/catch_all.hpp
  libraries=(-lCatch2)
fi
for header in Eigen/Core xsimd/xsimd.hpp "$catch2"; do
  if ! finds "$header"; then
    echo "<$header> is missing: install libeigen3-dev, libxsimd-dev and catch2, or name a folder that has" \
      "include/eigen3, include/xsimd and include/catch2" >&2
    exit 1
  fi
done

architecture=sm_$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
echo "== $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1), $architecture, $("$nvcc" --version | tail -n 1)"

# One object for each source, side by side: source, then the compiler and its options.
objects=()
jobs=()
compile() {
  local source=$1 object
  shift
  object=$build/$(tr / _ <<<"$source").o
  objects+=("$object")
  "$@" "${includes[@]}" -c "$source" -o "$object" &
  jobs+=($!)
}
cuda=("$nvcc" -std=c++20 -O3 -lineinfo "-arch=$architecture")
host=(g++ -std=c++20 -O2)
compile tests/support/main.cpp "${host[@]}"
compile tests/cuda/cuda_backend.cu "${cuda[@]}"
for source in tests/cuda/*_test.cpp; do compile "$source" "${host[@]}"; done
"${cuda[@]}" -Iinclude benchmarks/cuda/attention_benchmark.cu -o "$build/attention_benchmark" -lcublas &
jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done
"$nvcc" "-arch=$architecture" "${objects[@]}" -o "$build/test_cuda" "${libraries[@]}"

echo "== tests"
"$build/test_cuda"

if [ -z "$quick" ]; then
  small="cuda::forward equals the reference when it cuts rows of tiles,cuda 1. keys that no row sees may hold anything"
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/test_cuda" "$small"
  done
fi

echo "== figures"
"$build/attention_benchmark"
if python3 -c 'import torch' 2>/dev/null; then python3 benchmarks/cuda/peers.py; fi
