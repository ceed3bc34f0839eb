#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Builds and runs everything that needs a GPU, on a machine with a CUDA device and no network.
#   tests/run_gpu.sh [PREFIX] [--quick]
# Needs nvcc 12.4 or newer (on the PATH or in /usr/local/cuda/bin), g++, and the headers of Eigen, xsimd and Catch2
# (version 2, which is one header, or an installed version 3): where the machine lacks them, PREFIX names a
# folder with include/eigen3, include/xsimd and include/catch2. Prints the test results, what compute-sanitizer found, and
# the table of figures; where python3 can import torch, PyTorch's figures and the tests of examples/torch_extension too.
# --quick leaves out the sanitizers. Objects go to build/gpu.

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

# Waits for the jobs that `start` has begun; fails when one of them does.
jobs=()
start() {
  "$@" &
  jobs+=($!)
}
finish() {
  local job
  for job in "${jobs[@]}"; do wait "$job"; done
  jobs=()
}

cuda=("$nvcc" -std=c++20 -O3 -lineinfo "-arch=$architecture" "${includes[@]}")
host=(g++ -std=c++20 -O2 "${includes[@]}")
start "${host[@]}" -c tests/support/main.cpp -o "$build/main.o"
objects=("$build/main.o")
for source in tests/cuda/*.cu; do
  objects+=("$build/$(basename "$source" .cu).o")
  start "${cuda[@]}" -c "$source" -o "${objects[-1]}"
done
tests=()
for source in tests/cuda/*_test.cpp; do
  tests+=("$build/$(basename "$source" .cpp)")
  start "${host[@]}" -c "$source" -o "${tests[-1]}.o"
done
start "${cuda[@]}" examples/04_cuda_forward_backward.cu -o "$build/04_cuda_forward_backward"
for name in attention attend distill rows; do
  start "${cuda[@]}" "benchmarks/cuda/${name}_benchmark.cu" -o "$build/${name}_benchmark" -lcublas
done
finish
for test in "${tests[@]}"; do
  start "$nvcc" "-arch=$architecture" "$test.o" "${objects[@]}" -o "$test" "${libraries[@]}"
done
finish

# Side by side too: most of their time goes into references on the CPU.
echo "== tests"
run_test() {
  "$1" >"$1.log" 2>&1 || { cat "$1.log"; return 1; }
  # Without a device that the runtime can use, tests pass by skipping.
  if grep -q 'skipped: needs a CUDA device' "$1.log"; then cat "$1.log"; return 1; fi
  echo "$(basename "$1"): $(tail -n 2 "$1.log" | head -n 1)"
}
run_extension() {
  local log=$build/torch_extension.log
  # The compiler of the tests, whatever CXX names: one that links a libstdc++ of its own into a module that torch loads
  # ends the first exception in a segmentation fault.
  CC=gcc CXX=g++ CPATH=${prefix:+$(realpath "$prefix")/include}${CPATH:+:$CPATH} examples/torch_extension/run.sh \
    >"$log" 2>&1 || {
    cat "$log"
    return 1
  }
  echo "torch_extension: $(tail -n 1 "$log")"
}
for test in "${tests[@]}"; do start run_test "$test"; done
has_torch=
if python3 -c 'import torch' 2>/dev/null; then has_torch=yes; fi
if [ -n "$has_torch" ]; then start run_extension; fi
finish
echo "== example 04_cuda_forward_backward"
"$build/04_cuda_forward_backward"

if [ -z "$quick" ]; then
  echo "== compute-sanitizer"
  sanitize() {  # a test, one of its cases, in which a comma is no separator
    local tool log
    for tool in memcheck racecheck; do
      log=$build/$1.$tool.log
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/$1" "${2//,/\\,}" >"$log" 2>&1 || {
        cat "$log"
        return 1
      }
      grep -q 'All tests passed' "$log" || { cat "$log"; return 1; }  # no case has that name
      echo "$1, $2: $(grep 'SUMMARY' "$log")"
    done
  }
  start sanitize forward_test "cuda::forward equals the reference when it cuts rows of tiles"
  start sanitize forward_contract_test "cuda 1. keys that no row sees may hold anything"
  start sanitize backward_test "cuda::backward equals the reference over several blocks and heads"
  start sanitize attend_blocks_test "cuda::attend_blocks over a few blocks and pages"
  start sanitize distillation_loss_test "cuda::distillation_loss equals the reference where shared memory holds part of a row"
  start sanitize token_weights_test "cuda::token_weights need no scores where all are alike, and no ignored"
  start sanitize merge_test "cuda::merge takes any number of states"
  start sanitize merge_backward_test "cuda::merge_backward leaves out what is not wanted, and gives the same bits each time"
  start sanitize rotate_test "cuda::reposition turns without the magnitude, by one delta or by one for each token"
  start sanitize scatter_rows_test "cuda: the adjoints of scatter_rows and gather_rows equal the CPU's"
  finish
fi

echo "== figures"
"$build/attention_benchmark"
"$build/attend_benchmark"
"$build/distill_benchmark"
"$build/rows_benchmark"
if [ -n "$has_torch" ]; then python3 benchmarks/cuda/peers.py; fi
