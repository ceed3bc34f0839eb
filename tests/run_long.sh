#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# The checks that take too long for every change: all stages, or those that are named. Each stage works alone, on a
# fresh Debian machine too; the others go on when one fails, and a table of results comes last.
#   tests/run_long.sh [STAGE...]           tests/run_long.sh --list
# Builds go to build/long, and what a stage prints to build/long/STAGE.log as well.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source cmake/prepare.sh

# A name and a command: a script, or a function below. A new stage is a line here.
stages=(
  "x86-64       test_machine x86-64"
  "x86-64-v3    test_machine x86-64-v3"
  "unoptimised  test_build unoptimised -D CMAKE_BUILD_TYPE=Debug"
  "clang        test_clang"
  "asan-ubsan   tests/run.sh --preset asan-ubsan"
  "tsan         tests/run.sh --preset tsan"
  "torch        test_torch"
  "clang-tidy   tidy_headers"
)
# Random configurations and hostile input.
if [ -e tests/long/run.sh ]; then stages+=("random       tests/long/run.sh"); fi

# The whole CPU test suite, in build/long/NAME, with options for cmake's configuration.
test_build() {
  local build=build/long/$1
  shift
  install_missing "${build_packages[@]}"
  cmake --preset release -B "$build" -D BLOCKATTN_WERROR=ON -D BLOCKATTN_BUILD_EXAMPLES=OFF \
    -D BLOCKATTN_BUILD_BENCHMARKS=OFF "$@"
  cmake --build "$build"
  ctest --test-dir "$build" --output-on-failure --parallel "$(nproc)" --timeout 7200
}

# For any machine that knows these instructions, -march=NAME.
test_machine() { test_build "$1" -D BLOCKATTN_NATIVE=OFF -D CMAKE_CXX_FLAGS="-march=$1"; }

test_clang() {
  install_missing clang
  test_build clang -D CMAKE_CXX_COMPILER=clang++
}

# Where python3 has no torch, with one for the CPU in an environment of its own: a tenth of what PyPI's takes, which
# examples/torch_extension/run.sh installs where this cannot be had.
test_torch() {
  install_missing python3 python3-venv
  if ! python3 -c 'import torch' 2>/dev/null && ! build/torch/bin/python -c 'import torch' 2>/dev/null; then
    python3 -m venv --clear build/torch
    build/torch/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check setuptools numpy
    build/torch/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --retries 1 torch \
      --index-url https://download.pytorch.org/whl/cpu || echo "No torch for the CPU alone: taking PyPI's"
  fi
  examples/run.sh torch_extension
}

# All headers of the umbrella, instantiated; .clang-tidy says with which checks. Needs clang-tidy 14.
tidy_headers() {
  install_missing g++ libxsimd-dev clang-tidy
  clang-tidy --quiet tests/structure/all_verbs.cpp -- -std=c++20 -Iinclude -march=x86-64-v3 \
    -D BLOCKATTN_ACCEPT_SLOW_BUILD
}

# The command of a stage; fails when there is no such stage.
command_of() {
  local line name command
  for line in "${stages[@]}"; do
    read -r name command <<<"$line"
    if [ "$name" = "$1" ]; then
      echo "$command"
      return
    fi
  done
  echo "There is no stage $1: tests/run_long.sh --list" >&2
  return 1
}

names=("$@")
if [ "${1-}" = --list ]; then
  printf '%s\n' "${stages[@]}"
  exit
fi
if [ ${#names[@]} -eq 0 ]; then
  for line in "${stages[@]}"; do names+=("${line%% *}"); done
fi
for name in "${names[@]}"; do command_of "$name" >/dev/null; done

mkdir -p build/long
table=()
failed=
for name in "${names[@]}"; do
  read -ra command <<<"$(command_of "$name")"
  begin=$SECONDS
  echo "== $name"
  # Not as a condition: `set -e` would not hold in it.
  set +e
  (
    set -e
    "${command[@]}"
  ) 2>&1 | tee "build/long/$name.log"
  status=${PIPESTATUS[0]}
  set -e
  result=passed
  if [ "$status" -ne 0 ]; then
    result=FAILED
    failed=yes
  fi
  table+=("$(printf '%-14s%-10s%s' "$name" "$result" "$(((SECONDS - begin + 30) / 60))")")
done

printf '\n%-14s%-10s%s\n' stage result minutes
printf '%s\n' "${table[@]}"
[ -z "$failed" ]
