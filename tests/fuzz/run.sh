#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Builds each fuzz target with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer and runs it.
#   tests/fuzz/run.sh [seconds for each target, 300]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source cmake/prepare.sh

seconds=${1:-300}
install_missing clang libclang-rt-14-dev
build=build/fuzz
mkdir -p "$build"
for source in tests/fuzz/*_fuzz.cpp; do
  name=$(basename "$source" .cpp)
  echo "== fuzz $name, $seconds s"
  clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    -DBLOCKATTN_ACCEPT_SLOW_BUILD -Iinclude -Itests "$source" -o "$build/$name"
  mkdir -p "$build/corpus_$name"
  "$build/$name" -max_total_time="$seconds" -print_final_stats=1 -verbosity=0 -artifact_prefix="$build/" \
    "$build/corpus_$name"
done
