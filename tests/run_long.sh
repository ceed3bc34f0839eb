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
  "random       random_configurations 100000"
  "fuzz         tests/fuzz/run.sh 300"
  "torch        examples/run.sh torch_extension"
  "clang-tidy   tidy_headers"
)

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

# Forward, backward and attend_blocks of the CPU against their oracles on at least so many random calls, drawn by as many
# processes as there are cores, each from a seed of its own. A failure prints the seed that repeats it.
random_configurations() {
  local cases_of_a_run=575 processes seed status=0 process pids=()
  processes=$(nproc)
  install_missing "${build_packages[@]}"
  cmake --preset release -B build/long/random -D BLOCKATTN_BUILD_EXAMPLES=OFF -D BLOCKATTN_BUILD_BENCHMARKS=OFF
  cmake --build build/long/random --target test_cpu
  for ((process = 0; process < processes; ++process)); do
    seed=$((${BLOCKATTN_SEED:-$(date +%s)} + process * 10000000))
    BLOCKATTN_SEED=$seed BLOCKATTN_CASE_FACTOR=$(($1 / cases_of_a_run / processes + 1)) build/long/random/tests/test_cpu \
      "cpu::forward equals the reference in*,cpu::forward equals the reference with*,cpu::backward equals the reference in*,\
cpu::backward equals the reference with*,attend_blocks equals its formula on random*" &
    pids+=($!)
    echo "process $process draws from seed $seed on"
  done
  for process in "${pids[@]}"; do wait "$process" || status=1; done
  return "$status"
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
