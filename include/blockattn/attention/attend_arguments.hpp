// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/key_segment.hpp>
#include <blockattn/core/range.hpp>
#include <blockattn/rope/rope.hpp>
#include <optional>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// What the queries of one sequence see: every key of every segment, and of its own growing tail
/// the past. The tail is aligned at its end: query i of n sees the tail keys
/// j <= i + tail.k.tokens - n. Segments and tail are read in place.
template <storage_scalar K = float, storage_scalar V = K>
struct attend_sequence {
  index_range queries;  ///< rows of attend_arguments::q
  /// Cached blocks, pages, prefixes; partitions not decreasing.
  std::span<const key_segment<K, V>> segments = {};
  key_segment<K, V> tail = {};  ///< causal; no tokens = none
};

/// The tensors of an attend_blocks call. Queries are rotated for their own positions.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q>
struct attend_arguments {
  using accumulator_type = accumulator_t<Q, K, V, O>;

  heads_view<const Q> q;  ///< (query_tokens, query_heads, head_dim)
  /// (query_tokens, query_heads, value_dim), written for the queries of the sequences.
  heads_view<O> o;
  /// (query_tokens, query_heads), natural log, written; optional.
  lse_view<accumulator_type> lse = {};
  std::span<const accumulator_type> sink_logits = {};     ///< (query_heads); empty = none
  std::span<const attend_sequence<K, V>> sequences = {};  ///< query ranges disjoint and increasing
};

/// attention_options, and the rope that shifts queries towards segments with query_shift != 0.
struct attend_options {
  std::optional<double> scale = std::nullopt;  ///< default 1 / sqrt(head_dim); finite
  double softcap = 0;                          ///< 0 = none; finite, >= 0
  const blockattn::rope* rope = nullptr;       ///< required when any query_shift is not 0
};

}  // namespace blockattn::inline BLOCKATTN_ABI
