#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Installs what is missing, builds everything and runs all tests.
#   tests/run.sh [--preset release|asan-ubsan|tsan|dev] [options for cmake's configuration...]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source cmake/prepare.sh

preset=release
if [ "${1-}" = --preset ]; then
  preset=${2:?--preset needs the name of a preset}
  shift 2
fi

install_missing "${build_packages[@]}"
cmake --preset "$preset" "$@"
cmake --build --preset "$preset"

# TSan of GCC 12 and 13 cannot place its shadow memory where addresses are fully randomised.
launcher=()
if [ "$preset" = tsan ] && setarch --addr-no-randomize true 2>/dev/null; then
  launcher=(setarch --addr-no-randomize)
fi
"${launcher[@]}" ctest --preset "$preset" --parallel "$(nproc)"
