// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_checks.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <cmath>
#include <limits>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::reference {

/// The gradient of attention, and the oracle of every backend. It walks the passes of
/// reference::forward in reverse; for query i, head h, with kv head g = h / group,
///   delta = d_o_i . o_i - d_lse_i
///   p_j   = exp(s_j - lse_i)                   for the keys j that i sees
///   d_s_j = p_j (d_o_i . v_j - delta)          hidden pairs: exactly 0
///   d_v_j = sum_i p_j d_o_i,   d_q_i = sum_j d_x_j k_j,   d_k_j = sum_i d_x_j q_i
///   d_sink_h = sum_i exp(sink_h - lse_i) (-delta)
/// with d_x_j = d_s_j * scale * (1 - (s_j / softcap)^2), the gradient of q_i . k_j. o and lse are
/// taken as given: those of a merge over more keys give the share of these keys in d_q, d_k and d_v
/// (arXiv 2205.14135, algorithm 4). Sums run over every query head of a kv head. Gradients are `=`;
/// keys that nobody sees get 0 and are never read. Arithmetic is fp64, or long double for double
/// tensors. O(query_heads * query_tokens * key_tokens * (head_dim + value_dim + slices)), no tiles.
/// Throws `error` when shapes disagree.
template <class Q = float,
          class K = Q,
          class V = K,
          class O = Q,
          class DQ = Q,
          class DK = K,
          class DV = V>
void backward(const backward_arguments<Q, K, V, O, DQ, DK, DV>& arguments,
              const attention_mask& mask,
              const attention_options& options = {}) {
  const auto& [q, k, v, o, lse, d_o, d_q, d_k, d_v, d_lse, sink_logits, d_sink_logits] = arguments;
  blockattn::detail::check_backward("reference::backward", arguments, options);
  blockattn::detail::require(mask.query_tokens() == q.tokens && mask.key_tokens() == k.tokens,
                             "reference::backward: the mask is for ", mask.query_tokens(),
                             " queries x ", mask.key_tokens(), " keys, q and k have ", q.tokens,
                             " and ", k.tokens, " tokens");
  using accumulator_type = accumulator_t<Q, K, V, O, DQ, DK, DV>;
  using real = std::conditional_t<std::is_same_v<accumulator_type, double>, long double, double>;
  const auto scale =
      static_cast<real>(blockattn::detail::resolved_scale(options.scale, q.head_dim));
  const auto softcap = static_cast<real>(options.softcap);
  const index_t group = k.heads > 0 ? q.heads / k.heads : 1;
  const auto value = [](const auto& stored) { return static_cast<real>(load_scalar(stored)); };
  const auto dot = [&](const auto* a, const auto* b, index_t count) {
    real sum = 0;
    for (index_t t = 0; t < count; ++t) sum += value(a[t]) * value(b[t]);
    return sum;
  };
  const auto store = [](const std::vector<real>& sums, auto* out) {
    for (const real sum : sums) store_scalar(*out++, static_cast<accumulator_type>(sum));
  };

  const auto row_of = [](index_t dim) { return std::vector<real>(static_cast<std::size_t>(dim)); };
  const auto keys = static_cast<std::size_t>(k.tokens);
  for (index_t kv_head = 0; kv_head < k.heads; ++kv_head) {
    std::vector<std::vector<real>> key_sum(keys, row_of(k.head_dim));
    std::vector<std::vector<real>> value_sum(keys, row_of(v.head_dim));
    for (index_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const auto h = static_cast<std::size_t>(head);
      real sink_sum = 0;
      for (index_t i = 0; i < q.tokens; ++i) {
        // Pass 3, "normalise": a row's weights add up to 1, which takes their mean out.
        const auto row_lse = static_cast<real>(lse.at(i, head));
        const real delta = dot(d_o.row(i, head), o.row(i, head), v.head_dim) -
                           (d_lse ? static_cast<real>(d_lse.at(i, head)) : real(0));
        if (!sink_logits.empty() && !std::isinf(sink_logits[h])) {
          sink_sum -= std::exp(static_cast<real>(sink_logits[h]) - row_lse) * delta;
        }
        std::vector<real> query_sum = row_of(q.head_dim);
        for (index_t j = 0; j < k.tokens; ++j) {
          if (!mask.visible(i, j)) continue;
          const auto key = static_cast<std::size_t>(j);
          // Pass 2, "exponentials and weighted values".
          real s = scale * dot(q.row(i, head), k.row(j, kv_head), q.head_dim);
          if (softcap > 0) s = softcap * std::tanh(s / softcap);
          const real p = std::exp(s - row_lse);
          for (index_t t = 0; t < v.head_dim; ++t) {
            value_sum[key][static_cast<std::size_t>(t)] += p * value(d_o.row(i, head)[t]);
          }
          const real d_s = p * (dot(d_o.row(i, head), v.row(j, kv_head), v.head_dim) - delta);
          // Pass 1, "scores".
          const real bend = softcap > 0 ? 1 - (s / softcap) * (s / softcap) : real(1);
          const real d_x = d_s * bend * scale;
          for (index_t t = 0; t < q.head_dim; ++t) {
            query_sum[static_cast<std::size_t>(t)] += d_x * value(k.row(j, kv_head)[t]);
            key_sum[key][static_cast<std::size_t>(t)] += d_x * value(q.row(i, head)[t]);
          }
        }
        store(query_sum, d_q.row(i, head));
      }
      if (!d_sink_logits.empty()) d_sink_logits[h] = static_cast<accumulator_type>(sink_sum);
    }
    for (index_t j = 0; j < k.tokens; ++j) {
      store(key_sum[static_cast<std::size_t>(j)], d_k.row(j, kv_head));
      store(value_sum[static_cast<std::size_t>(j)], d_v.row(j, kv_head));
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::reference
