#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# A stopped and resumed run has the same bits as one that was not stopped, with another number of
# threads.
#   check_resume.sh PROGRAM

set -euo pipefail
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# checksum_of ARGUMENTS...: of a run that ends after the given steps
checksum_of() {
  "$program" --quick "$@" 2>/dev/null | sed -n 's/.*checksum //p'
}

# 66 steps: the teacher (60) and the start of the first student.
whole=$(checksum_of --threads 2 --checkpoint "$folder/whole" --stop-after-steps 66)
checksum_of --threads 1 --checkpoint "$folder/cut" --stop-after-steps 63 >"$folder/first"
cut=$(checksum_of --threads 1 --checkpoint "$folder/cut" --resume --stop-after-steps 3)
echo "in one go: $whole, stopped and resumed: $cut"
[ -n "$whole" ] && [ "$whole" = "$cut" ] && [ "$whole" != "$(cat "$folder/first")" ]
