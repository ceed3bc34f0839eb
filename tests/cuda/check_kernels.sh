#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Compiles every kernel of the tests for an architecture, if this nvcc knows it, and reads ptxas's log: no register is
# spilled and no C75xx warning (a serialised tensor-core pipeline) appears.
#   check_kernels.sh NVCC REPOSITORY sm_80

set -euo pipefail
nvcc=${1:?the path of nvcc}
repository=${2:?the repository}
architecture=${3:?an architecture}
if ! "$nvcc" --list-gpu-code | grep -qx "$architecture"; then
  echo "skipped: $nvcc does not know $architecture"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$work/log
for source in "$repository"/tests/cuda/*.cu; do
  "$nvcc" -std=c++20 -O3 -arch="$architecture" -cubin -Xptxas -v -I"$repository/include" -I"$repository/tests" \
    -o "$work/kernels.cubin" "$source" >>"$log" 2>&1 || {
    cat "$log"
    exit 1
  }
done
kernels=$(grep -c 'Compiling entry function' "$log")
spilling=$(grep 'bytes spill stores' "$log" | grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)
warnings=$(grep -c 'C75[0-9][0-9]' "$log" || true)
echo "$architecture: $kernels kernels, $spilling that spill registers, $warnings C75xx warnings"
if [ "$kernels" -eq 0 ] || [ "$spilling" -ne 0 ] || [ "$warnings" -ne 0 ]; then
  awk '/Compiling entry function/ { entry = $0 }
       /bytes spill stores/ && !/ 0 bytes spill stores, 0 bytes spill loads/ { print entry; print }' "$log"
  grep 'C75[0-9][0-9]' "$log" || true
  exit 1
fi
