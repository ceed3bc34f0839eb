// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/storage.hpp>
#include <optional>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// The tensors of a forward call. o and lse overlap no input. Storage types mix freely below fp64;
/// query_heads is a multiple of kv_heads (GQA), and head h reads the kv head
/// h / (query_heads / kv_heads).
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q>
struct forward_arguments {
  using accumulator_type = accumulator_t<Q, K, V, O>;

  heads_view<const Q> q;  ///< (query_tokens, query_heads, head_dim)
  heads_view<const K> k;  ///< (key_tokens, kv_heads, head_dim)
  heads_view<const V> v;  ///< (key_tokens, kv_heads, value_dim)
  heads_view<O> o;        ///< (query_tokens, query_heads, value_dim), written
  /// (query_tokens, query_heads), natural log, written; optional.
  lse_view<accumulator_type> lse = {};
  /// (query_heads) sink logits: an extra softmax-denominator term exp(s_h) that has no value;
  /// empty = none.
  std::span<const accumulator_type> sink_logits = {};
};

/// How scores are formed: score = softcap_c(scale * q.k), with softcap_c(x) = c * tanh(x / c).
struct attention_options {
  /// Default 1 / sqrt(head_dim). Finite; below the smallest normal number of the accumulator it
  /// counts as 0.
  std::optional<double> scale = std::nullopt;
  double softcap = 0;  ///< 0 = none; finite, positive and normal in the accumulator, as scale / it
};

}  // namespace blockattn::inline BLOCKATTN_ABI
