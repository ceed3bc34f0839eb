// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/attend_case.hpp"

/// \file
/// attend_blocks calls that every backend is tested with, beside the random ones.

namespace blockattn_test {

/// Every head dimension, with few rows and with many.
inline std::vector<attend_case> attend_head_dims() {
  std::vector<attend_case> cases;
  for (const index_t head_dim : {8, 40, 64, 72, 128, 256}) {
    for (const index_t value_dim : {8, 40, 64, 72, 128, 256}) {
      for (const index_t queries : {1, 7}) {
        cases.push_back({.seed = test_seed(8000),
                         .query_tokens = queries,
                         .query_heads = 6,
                         .kv_heads = 2,
                         .head_dim = head_dim,
                         .value_dim = value_dim,
                         .sequences = {{.queries = {0, queries},
                                        .segments = {{.keys = 33, .query_shift = -5}, {.keys = 2}},
                                        .tail = {.keys = queries}}}});
      }
    }
  }
  return cases;
}

inline std::vector<attend_case> attend_gqa_ratios() {
  std::vector<attend_case> cases = {
      {.seed = test_seed(8100),
       .query_tokens = 2,
       .query_heads = 130,
       .sequences = {{.queries = {0, 2}, .segments = {{.keys = 20}}, .tail = {.keys = 2}}}}};
  for (const index_t kv_heads : {1, 3}) {
    for (const index_t group : {1, 2, 5, 8, 9, 16}) {
      for (const index_t queries : {1, 13}) {
        cases.push_back({.seed = test_seed(8100),
                         .query_tokens = queries,
                         .query_heads = kv_heads * group,
                         .kv_heads = kv_heads,
                         .sequences = {{.queries = {0, queries},
                                        .segments = {{.keys = 20, .query_shift = 3}},
                                        .tail = {.keys = queries}}}});
      }
    }
  }
  return cases;
}

/// One sequence with a segment and a tail as long as its queries, for all pairs of sizes.
inline std::vector<attend_case> attend_sizes_of(const std::vector<index_t>& queries,
                                                const std::vector<index_t>& keys) {
  std::vector<attend_case> cases;
  for (const index_t q : queries) {
    for (const index_t k : keys) {
      cases.push_back(
          {.seed = test_seed(8200),
           .query_tokens = q,
           .with_sink_logits = k > 500,
           .sequences = {{.queries = {0, q}, .segments = {{.keys = k}}, .tail = {.keys = q}}}});
    }
  }
  return cases;
}

/// Nothing to do or nothing to see.
inline std::vector<attend_case> attend_empty() {
  std::vector<attend_case> cases = {
      attend_case{},
      {.query_tokens = 3},
      {.query_tokens = 3, .sequences = {{.queries = {0, 0}}, {.queries = {1, 1}}}}};
  for (const bool sinks : {false, true}) {
    // No keys at all; empty segments; a tail that only the last of three queries sees.
    cases.push_back(
        {.query_tokens = 9,
         .query_heads = 3,
         .with_sink_logits = sinks,
         .sequences = {{.queries = {0, 2}},
                       {.queries = {3, 5}, .segments = {{.keys = 0, .query_shift = 4}, {}}},
                       {.queries = {6, 9}, .tail = {.keys = 1}}}});
    // A partition of weight 0, alone, next to another, and cut into chunks.
    for (const index_t keys : {4, 3000}) {
      const segment_shape out{.keys = keys, .log_weight = -HUGE_VAL, .partition = -1};
      cases.push_back({.query_tokens = 3,
                       .with_sink_logits = sinks,
                       .sequences = {{.queries = {0, 1}, .segments = {out}},
                                     {.queries = {1, 3}, .segments = {out}, .tail = {.keys = 2}}}});
    }
  }
  return cases;
}

}  // namespace blockattn_test
