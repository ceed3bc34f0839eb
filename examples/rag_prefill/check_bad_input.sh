#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Every bad input gives one sentence on standard error and a non-zero exit.
#   check_bad_input.sh PROGRAM MODEL

set -euo pipefail
program=$1
model=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

# refuse NAME PATTERN ARGUMENTS...
refuse() {
  local name=$1 pattern=$2 status=0
  shift 2
  "$program" "$@" >"$folder/out" 2>"$folder/err" || status=$?
  local sentences
  sentences=$(grep -c '^rag_prefill: ' "$folder/err" || true)
  if [ "$status" -eq 1 ] && [ "$sentences" -eq 1 ] && grep -q "$pattern" "$folder/err"; then
    echo "ok: $name: $(grep '^rag_prefill: ' "$folder/err")"
  else
    echo "FAILED: $name: exit $status, standard error:" && cat "$folder/err"
    failures=$((failures + 1))
  fi
}

: >"$folder/empty.txt"
echo "A short document." >"$folder/short.txt"
printf 'A document that is much too long.\n%.0s' $(seq 9000) >"$folder/long.txt"
: >"$folder/empty.gguf"
head -c 4 "$model" >"$folder/magic.gguf"
head -c 100000 "$model" >"$folder/metadata.gguf"
head -c 20000000 "$model" >"$folder/tensors.gguf"
{ printf 'JUNK' && tail -c +5 "$folder/metadata.gguf"; } >"$folder/other.gguf"

refuse "missing model" none.gguf --model "$folder/none.gguf"
for cut in empty magic metadata tensors other; do
  refuse "corrupt model ($cut)" "$cut.gguf" --model "$folder/$cut.gguf"
done
refuse "missing document" none.txt --model "$model" "$folder/none.txt"
refuse "empty document" empty.txt --model "$model" "$folder/empty.txt"
refuse "prompt beyond the context" context --model "$model" "$folder/long.txt"
refuse "empty question" question --model "$model" --question "" "$folder/short.txt"
refuse "question beyond 64 tokens" question --model "$model" \
  --question "$(printf 'why %.0s' $(seq 70))" "$folder/short.txt"
refuse "unknown flag" surprise --surprise
refuse "threads out of range" threads --threads 0

[ "$failures" -eq 0 ]
