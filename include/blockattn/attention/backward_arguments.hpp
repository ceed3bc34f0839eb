// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/heads_view.hpp>
#include <blockattn/core/storage.hpp>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// The tensors of a backward call: what forward was given, what it returned, and the gradients of
/// both. d_q, d_k and d_v may be stored in other types than their tensors (fp32 gradients of bf16
/// tensors accumulate well), d_o has the type of o; all types mix freely below fp64. What is
/// written overlaps nothing else.
template <storage_scalar Q = float,
          storage_scalar K = Q,
          storage_scalar V = K,
          storage_scalar O = Q,
          storage_scalar DQ = Q,
          storage_scalar DK = K,
          storage_scalar DV = V>
struct backward_arguments {
  using accumulator_type = accumulator_t<Q, K, V, O, DQ, DK, DV>;

  heads_view<const Q> q;                 ///< (query_tokens, query_heads, head_dim)
  heads_view<const K> k;                 ///< (key_tokens, kv_heads, head_dim)
  heads_view<const V> v;                 ///< (key_tokens, kv_heads, value_dim)
  heads_view<const O> o;                 ///< (query_tokens, query_heads, value_dim), from forward
  lse_view<const accumulator_type> lse;  ///< (query_tokens, query_heads), from forward; required
  heads_view<const O> d_o;               ///< (query_tokens, query_heads, value_dim)
  heads_view<DQ> d_q;                    ///< (query_tokens, query_heads, head_dim), written
  heads_view<DK> d_k;                    ///< (key_tokens, kv_heads, head_dim), written
  heads_view<DV> d_v;                    ///< (key_tokens, kv_heads, value_dim), written
  /// (query_tokens, query_heads) gradient of lse, where the loss depends on it; optional.
  lse_view<const accumulator_type> d_lse = {};
  /// (query_heads) as forward had them; empty = none. lse then includes them.
  std::span<const accumulator_type> sink_logits = {};
  /// (query_heads) written; empty = not wanted. Needs sink_logits. The whole gradient, also where
  /// the keys are only a part of those that o and lse come from: ask for it once.
  std::span<accumulator_type> d_sink_logits = {};
};

}  // namespace blockattn::inline BLOCKATTN_ABI
