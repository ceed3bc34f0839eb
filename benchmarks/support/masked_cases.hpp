// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>

#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <random>
#include <vector>

namespace blockattn_benchmark {

using namespace blockattn;

enum mask_kind : std::int64_t { causal, ragged_blocks };

/// Blocks of 40 to 1400 tokens and a final block of 512, or of an eighth of the tokens where that
/// is less.
inline block_layout ragged_layout(index_t tokens, std::mt19937_64& random) {
  const index_t final_block = std::min<index_t>(512, tokens / 8);
  std::vector<index_t> lengths;
  for (index_t left = tokens - final_block; left > 0;) {
    lengths.push_back(std::min(left, std::uniform_int_distribution<index_t>(40, 1400)(random)));
    left -= lengths.back();
  }
  lengths.push_back(final_block);
  return with_final_block(block_layout::from_lengths(lengths));
}

/// What one row of a table measures: tokens, head_dim, mask, threads, in this order.
struct masked_case {
  explicit masked_case(benchmark::State& state)
      : tokens(state.range(0)),
        head_dim(state.range(1)),
        kind(static_cast<mask_kind>(state.range(2))),
        threads(state.range(3)) {
    state.SetLabel(kind == causal ? "causal" : "ragged blocks 40..1400 + final");
  }

  attention_mask mask(std::mt19937_64& random) const {
    return kind == causal ? causal_mask(tokens)
                          : block_attention_mask(ragged_layout(tokens, random));
  }
  /// About the same work for every row of the table, and a head for each thread.
  index_t heads() const { return kind == causal && tokens > 8192 ? threads : 4; }

  index_t tokens;
  index_t head_dim;
  mask_kind kind;
  index_t threads;
};

inline void masked_cases(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"tokens", "d", "mask", "threads"})
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  for (const std::int64_t threads : {1, 2}) {
    for (const std::int64_t mask : {causal, ragged_blocks}) {
      for (const std::int64_t tokens : {4096, 32768}) {
        for (const std::int64_t head_dim : {64, 128})
          benchmark->Args({tokens, head_dim, mask, threads});
      }
    }
  }
  benchmark->Iterations(5);
}

}  // namespace blockattn_benchmark
