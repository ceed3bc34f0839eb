#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Compiles every kernel of the tests for the first of some architectures, makes code for all of them that this nvcc
# knows, and reads ptxas's log: no register is spilled and no C75xx warning (a serialised tensor-core pipeline) appears.
#   check_kernels.sh NVCC REPOSITORY sm_80 [sm_86 ...]

set -euo pipefail
nvcc=${1:?the path of nvcc}
repository=${2:?the repository}
oldest=${3:?an architecture}
shift 2

known=$("$nvcc" --list-gpu-code)
architectures=()
for architecture in "$@"; do
  if grep -qx "$architecture" <<<"$known"; then
    architectures+=("$architecture")
  else
    echo "skipped: $nvcc does not know $architecture"
  fi
done
if [ ${#architectures[@]} -eq 0 ]; then exit 0; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$work/log
codes=$(IFS=,; echo "${architectures[*]}")
for source in "$repository"/tests/cuda/*.cu; do
  "$nvcc" -std=c++20 -O3 -fatbin -gencode "arch=compute_${oldest#sm_},code=[$codes]" -Xptxas -v \
    -I"$repository/include" -I"$repository/tests" -o "$work/kernels.fatbin" "$source" >>"$log" 2>&1 || {
    cat "$log"
    exit 1
  }
done
for architecture in "${architectures[@]}"; do
  kernels=$(grep -c "Compiling entry function .* for '$architecture'" "$log" || true)
  echo "$architecture: $kernels kernels"
  if [ "$kernels" -eq 0 ]; then exit 1; fi
done
spilling=$(grep 'bytes spill stores' "$log" | grep -vc ' 0 bytes spill stores, 0 bytes spill loads' || true)
warnings=$(grep -c 'C75[0-9][0-9]' "$log" || true)
echo "$spilling spill registers, $warnings C75xx warnings"
if [ "$spilling" -ne 0 ] || [ "$warnings" -ne 0 ]; then
  awk '/Compiling entry function/ { entry = $0 }
       /bytes spill stores/ && !/ 0 bytes spill stores, 0 bytes spill loads/ { print entry; print }' "$log"
  grep 'C75[0-9][0-9]' "$log" || true
  exit 1
fi
