// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/checks.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <cmath>
#include <limits>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::reference {

/// The definition of attention, and the oracle of every backend: for query i, head h, with kv head
/// g = h / group,
///   s_j = softcap(scale * q_i . k_j)           for the keys j that i sees
///   lse = log(exp(sink_h) + sum_j exp(s_j))    (no sink term without sink logits)
///   o   = sum_j exp(s_j - lse) v_j
/// A row that sees nothing has o = 0 and lse = sink_h or -inf. Keys that nobody sees are never
/// read. Arithmetic is fp64, or long double for double tensors.
/// O(query_heads * query_tokens * key_tokens * (head_dim + slices)), no tiles. Throws `error` when
/// shapes disagree.
template <class Q = float, class K = Q, class V = K, class O = Q>
void forward(const forward_arguments<Q, K, V, O>& arguments,
             const attention_mask& mask,
             const attention_options& options = {}) {
  const auto& [q, k, v, o, lse, sink_logits] = arguments;
  blockattn::detail::check_forward("reference::forward", arguments, options);
  blockattn::detail::require(mask.query_tokens() == q.tokens && mask.key_tokens() == k.tokens,
                             "reference::forward: the mask is for ", mask.query_tokens(),
                             " queries x ", mask.key_tokens(), " keys, q and k have ", q.tokens,
                             " and ", k.tokens, " tokens");
  using accumulator_type = accumulator_t<Q, K, V, O>;
  using real = std::conditional_t<std::is_same_v<accumulator_type, double>, long double, double>;
  const auto scale =
      static_cast<real>(blockattn::detail::resolved_scale(options.scale, q.head_dim));
  const auto softcap = static_cast<real>(options.softcap);
  const index_t group = k.heads > 0 ? q.heads / k.heads : 1;
  constexpr real infinity = std::numeric_limits<real>::infinity();

  std::vector<real> score(static_cast<std::size_t>(k.tokens));
  std::vector<real> sum(static_cast<std::size_t>(v.head_dim));
  for (index_t head = 0; head < q.heads; ++head) {
    const real sink = sink_logits.empty()
                          ? -infinity
                          : static_cast<real>(sink_logits[static_cast<std::size_t>(head)]);
    for (index_t i = 0; i < q.tokens; ++i) {
      // Pass 1: scores and their maximum (the sink takes part).
      real largest = sink;
      for (index_t j = 0; j < k.tokens; ++j) {
        real& s = score[static_cast<std::size_t>(j)];
        s = -infinity;
        if (!mask.visible(i, j)) continue;
        real dot = 0;
        for (index_t t = 0; t < q.head_dim; ++t) {
          dot += static_cast<real>(load_scalar(q.row(i, head)[t])) *
                 static_cast<real>(load_scalar(k.row(j, head / group)[t]));
        }
        s = softcap > 0 ? softcap * std::tanh(scale * dot / softcap) : scale * dot;
        largest = std::max(largest, s);
      }
      // Pass 2: exponentials, their sum, and the weighted values.
      real denominator = sink == -infinity ? real(0) : std::exp(sink - largest);
      std::fill(sum.begin(), sum.end(), real(0));
      for (index_t j = 0; j < k.tokens; ++j) {
        if (score[static_cast<std::size_t>(j)] == -infinity) continue;
        const real p = std::exp(score[static_cast<std::size_t>(j)] - largest);
        denominator += p;
        for (index_t t = 0; t < v.head_dim; ++t) {
          sum[static_cast<std::size_t>(t)] +=
              p * static_cast<real>(load_scalar(v.row(j, head / group)[t]));
        }
      }
      // Pass 3: normalise. An empty row keeps sum = 0 and lse = -inf.
      for (index_t t = 0; t < v.head_dim; ++t) {
        const real value =
            denominator != 0 ? sum[static_cast<std::size_t>(t)] / denominator : real(0);
        store_scalar(o.row(i, head)[t], static_cast<accumulator_type>(value));
      }
      if (lse) {
        lse.at(i, head) = static_cast<accumulator_type>(
            denominator != 0 ? largest + std::log(denominator) : -infinity);
      }
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::reference
