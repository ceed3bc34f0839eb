#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Every bad input gives one sentence on standard error and a non-zero exit.
#   check_bad_input.sh PROGRAM

set -euo pipefail
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

# refuse NAME PATTERN ARGUMENTS...
refuse() {
  local name=$1 pattern=$2 status=0
  shift 2
  "$program" "$@" >"$folder/out" 2>"$folder/err" || status=$?
  local sentences
  sentences=$(grep -c '^block_distillation: ' "$folder/err" || true)
  if [ "$status" -eq 1 ] && [ "$sentences" -eq 1 ] && grep -q "$pattern" "$folder/err"; then
    echo "ok: $name: $(grep '^block_distillation: ' "$folder/err")"
  else
    echo "FAILED: $name: exit $status, standard error:" && cat "$folder/err"
    failures=$((failures + 1))
  fi
}

checkpoint=$folder/checkpoint
"$program" --quick --stop-after-steps 2 --checkpoint "$checkpoint" >/dev/null 2>&1
: >"$folder/empty"
echo "no checkpoint at all" >"$folder/text"
head -c 100000 "$checkpoint" >"$folder/cut"
{ cat "$checkpoint" && echo more; } >"$folder/long"

refuse "unknown flag" surprise --surprise
refuse "threads out of range" threads --threads 0
refuse "seeds that are no number" seeds --seeds three
refuse "a flag without its value" "takes a value" --checkpoint
refuse "empty path" curves --curves ""
refuse "missing checkpoint" none --quick --resume --checkpoint "$folder/none"
for file in empty text cut long; do
  refuse "corrupt checkpoint ($file)" "$file" --quick --resume --checkpoint "$folder/$file"
done
refuse "checkpoint of another run" "other options" --resume --checkpoint "$checkpoint"
refuse "checkpoint that cannot be written" "cannot write" --quick --stop-after-steps 0 \
  --checkpoint "$folder/no/such/folder"

[ "$failures" -eq 0 ]
