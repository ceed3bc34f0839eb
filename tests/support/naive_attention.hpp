// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/dense_mask.hpp>
#include <cmath>
#include <limits>

#include "support/attention_case.hpp"

namespace blockattn_test {

/// Contiguous results, token-major.
template <class Real>
struct naive_result {
  std::vector<Real> o;    ///< (query_tokens, query_heads, value_dim)
  std::vector<Real> lse;  ///< (query_tokens, query_heads)
  std::vector<Real>
      mean_score;  ///< (query_tokens, query_heads) sum_j p_j s_j = d lse / d log scale
};

/// Leaves intermediate results as they are.
struct no_rounding {
  template <class Real>
  Real operator()(Real value) const {
    return value;
  }
};

/// Rounds intermediate results to a storage type, as an implementation does that writes the n x n
/// matrices S and P to memory.
template <class T>
struct round_to {
  template <class Real>
  Real operator()(Real value) const {
    T stored;
    store_scalar(stored, value);
    return static_cast<Real>(load_scalar(stored));
  }
};

/// Rounds intermediate results to so many significant bits, for a unit roundoff of 2^-Bits.
template <int Bits>
struct round_to_bits {
  template <class Real>
  Real operator()(Real value) const {
    int exponent = 0;
    const Real fraction = std::frexp(value, &exponent);
    return std::ldexp(std::nearbyint(std::ldexp(fraction, Bits)), exponent - Bits);
  }
};

/// Attention as one would first write it: S = q k^T, P = softmax(S), o = P v, all rows of S and P
/// as a whole, sums from left to right in arithmetic of type Real, S and P passed through `round`.
/// - Real = long double without rounding: an exact answer that shares no line with the library.
/// - Real = the accumulator, round_to<T>: the yardstick of the accuracy contract (DESIGN.md, 6.8).
template <class Real, class Round, class Q, class K, class V, class O>
naive_result<Real> naive_attention(const forward_arguments<Q, K, V, O>& arguments,
                                   const attention_mask& mask,
                                   const attention_options& options,
                                   const Round& round) {
  const auto& [q, k, v, o, lse_out, sink_logits] = arguments;
  const std::vector<std::uint8_t> visible = to_dense(mask);
  const auto scale = static_cast<Real>(detail::resolved_scale(options.scale, q.head_dim));
  const auto cap = static_cast<Real>(options.softcap);
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  naive_result<Real> result;
  std::vector<Real> row(static_cast<std::size_t>(k.tokens));
  for (index_t i = 0; i < q.tokens; ++i) {
    for (index_t h = 0; h < q.heads; ++h) {
      const index_t kv_head = h / (q.heads / k.heads);
      Real largest = -infinity;
      for (index_t j = 0; j < k.tokens; ++j) {
        Real& s = row[static_cast<std::size_t>(j)];
        s = -infinity;
        if (visible[static_cast<std::size_t>(i * k.tokens + j)] == 0) continue;
        Real dot = 0;
        for (index_t t = 0; t < q.head_dim; ++t) {
          dot += static_cast<Real>(load_scalar(q.row(i, h)[t])) *
                 static_cast<Real>(load_scalar(k.row(j, kv_head)[t]));
        }
        s = round(scale * dot);
        if (cap > 0) s = round(cap * std::tanh(s / cap));
        largest = std::max(largest, s);
      }
      const Real sink =
          sink_logits.empty() ? -infinity : Real(sink_logits[static_cast<std::size_t>(h)]);
      largest = std::max(largest, sink);
      const bool sees_nothing = largest == -infinity;
      Real sum = sees_nothing ? Real(0) : std::exp(sink - largest);
      for (const Real s : row) sum += s == -infinity ? Real(0) : std::exp(s - largest);
      Real mean_score = 0;
      for (Real& s : row) {
        const Real p = s == -infinity ? Real(0) : round(std::exp(s - largest) / sum);
        if (p != 0) mean_score += p * s;
        s = p;
      }
      std::vector<Real> total(static_cast<std::size_t>(v.head_dim), Real(0));
      for (index_t j = 0; j < k.tokens; ++j) {
        const Real p = row[static_cast<std::size_t>(j)];
        if (p == 0) continue;
        for (index_t t = 0; t < v.head_dim; ++t) {
          total[static_cast<std::size_t>(t)] +=
              p * static_cast<Real>(load_scalar(v.row(j, kv_head)[t]));
        }
      }
      result.o.insert(result.o.end(), total.begin(), total.end());
      result.mean_score.push_back(mean_score);
      result.lse.push_back(sees_nothing ? -infinity : largest + std::log(sum));
    }
  }
  return result;
}

}  // namespace blockattn_test
