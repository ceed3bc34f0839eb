# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash

# Sourced by the run scripts. Prints the path of nvcc: from the PATH, or where the CUDA Toolkit installs it.
find_nvcc() {
  if command -v nvcc; then return; fi
  if [ -x /usr/local/cuda/bin/nvcc ]; then
    echo /usr/local/cuda/bin/nvcc
    return
  fi
  echo "nvcc is neither on the PATH nor in /usr/local/cuda/bin: install the CUDA Toolkit, 12.4 or newer" \
    "(https://developer.nvidia.com/cuda-downloads)" >&2
  return 1
}
