#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Builds block_attention for a python3 that can import torch, in build/torch_extension, and runs its tests. Where
# python3 cannot, torch goes into an environment of its own, build/torch: 3 GB to download, 5.4 GB on the disk.
#   examples/torch_extension/run.sh [--smoke] [arguments for unittest...]
# With --smoke nothing is downloaded: without torch the example is skipped.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
source "$root/cmake/prepare.sh"
build=$root/build
smoke=
if [ "${1-}" = --smoke ]; then
  smoke=yes
  shift
fi

finds_torch() { "$1" -c 'import torch' >/dev/null 2>&1; }
python=python3
if ! finds_torch "$python"; then
  python=$build/torch/bin/python
  if ! finds_torch "$python"; then
    if [ -n "$smoke" ]; then
      echo "skipped: python3 cannot import torch"
      exit 0
    fi
    echo "python3 cannot import torch: installing it in $build/torch"
    python3 -c 'import ensurepip' 2>/dev/null || install_missing python3-venv
    python3 -m venv --clear "$build/torch"
    "$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch setuptools
  fi
fi

python_h=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
if [ ! -e "$python_h" ]; then install_missing python3-dev; fi

cd "$here"
lib=$build/torch_extension/lib
"$python" setup.py --quiet build --force --build-base "$build/torch_extension" --build-lib "$lib"
PYTHONPATH="$lib" "$python" test_block_attention.py "$@"
