// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/attention/attend_arguments.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "support/rope_variants.hpp"
#include "support/unit_roundoff.hpp"

namespace blockattn_test {

/// One output row by the formula of key_segment, and how far an implementation may be from it.
template <class Real>
struct oracle_row {
  std::vector<Real> o;
  Real lse = -std::numeric_limits<Real>::infinity();
  std::vector<Real> o_bound;  ///< before the rounding to the storage of o
  Real lse_bound = 0;
};

/// How a backend rounds, beside the arithmetic of the accumulator.
struct attend_rounding {
  double accumulator = 1;   ///< unit roundoff of a sum of products, in those of the accumulator
  double weight = 0;        ///< unit roundoff of a softmax weight before it meets its value
  double turned_query = 0;  ///< of a query that was turned by a query_shift
};

/// One partition of a row on its way.
template <class Real, class V>
struct oracle_partition {
  std::vector<Real> scores;
  std::vector<const V*> values;
  Real log_weight_scale;
  Real log_weight;
  Real score_error = 0;  ///< of the worst score
};

template <class Real>
Real log_sum_exp(const std::vector<Real>& x) {
  Real largest = -std::numeric_limits<Real>::infinity();
  for (const Real value : x) largest = std::max(largest, value);
  if (largest == -std::numeric_limits<Real>::infinity()) return largest;
  Real sum = 0;
  for (const Real value : x) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

/// Attention of one query row, straight from the definition: no tiles, no merging order, the query
/// turned for every segment.
///
/// The bound follows the arithmetic in C with u its unit roundoff. A score is off by a rotation and
/// a sum of head_dim products, 3 u |scale score_scale| |q| |k| (partial sums of random products
/// grow like a root, and their roundings cancel like one; a worst case would have head_dim for 3),
/// and a few roundings of itself. Weights are then off by exp(2 delta) - 1 at most, where delta
/// also holds the error of log_weight_scale * lse + log_weight, and so is o, relative to sum_j
/// weight_j |v_j|. Weights that are rounded once more are off by `rounding.weight`, scores of
/// turned queries by rounding.turned_query |scale score_scale| |q| |k| (Cauchy and Schwarz).
template <class Q, class K, class V, class O>
auto attend_oracle(const attend_arguments<Q, K, V, O>& arguments,
                   const attend_options& options,
                   const attend_sequence<K, V>& sequence,
                   index_t query,
                   index_t head,
                   const attend_rounding& rounding = {}) {
  using C = accumulator_t<Q, K, V, O>;
  using real = std::conditional_t<std::is_same_v<C, double>, long double, double>;
  const real unit = static_cast<real>(rounding.accumulator) *
                    static_cast<real>(std::numeric_limits<C>::epsilon()) / 2;
  constexpr real infinity = std::numeric_limits<real>::infinity();
  const index_t dim = arguments.q.head_dim;
  const auto root = std::sqrt(static_cast<real>(dim));
  const real scale = options.scale ? static_cast<real>(*options.scale) : 1 / root;

  std::vector<double> q;
  for (index_t t = 0; t < dim; ++t) {
    q.push_back(
        static_cast<double>(load_scalar(arguments.q.row(sequence.queries.begin + query, head)[t])));
  }
  const auto q_norm = static_cast<real>(norm(q));
  std::vector<oracle_partition<real, V>> partitions;
  index_t previous = 0;
  double turned_by = 0;
  std::vector<double> turned = q;
  const auto take = [&](const key_segment<K, V>& segment, index_t visible) {
    if (partitions.empty() || previous != segment.partition) {
      partitions.push_back({.scores = {},
                            .values = {},
                            .log_weight_scale = static_cast<real>(segment.log_weight_scale),
                            .log_weight = static_cast<real>(segment.log_weight)});
    }
    previous = segment.partition;
    oracle_partition<real, V>& partition = partitions.back();
    if (visible > 0 && segment.query_shift != turned_by) {
      turned_by = segment.query_shift;
      turned = turned_by == 0 ? q : rotated_by_definition(*options.rope, q, turned_by, 1);
    }
    const auto turn_unit = static_cast<real>(segment.query_shift != 0 ? rounding.turned_query : 0);
    for (index_t j = 0; j < visible; ++j) {
      const index_t kv_head = head / (arguments.q.heads / segment.k.heads);
      real dot = 0;
      real k_square = 0;
      for (index_t t = 0; t < dim; ++t) {
        const auto k = static_cast<real>(load_scalar(segment.k.row(j, kv_head)[t]));
        dot += static_cast<real>(turned[static_cast<std::size_t>(t)]) * k;
        k_square += k * k;
      }
      const real softcap = static_cast<real>(options.softcap);
      const real capped = softcap > 0 ? softcap * std::tanh(scale * dot / softcap) : scale * dot;
      const real score = static_cast<real>(segment.score_scale) * capped;
      partition.scores.push_back(score);
      partition.score_error = std::max(
          partition.score_error, (3 * unit + turn_unit) *
                                         std::abs(scale * static_cast<real>(segment.score_scale)) *
                                         q_norm * std::sqrt(k_square) +
                                     3 * unit * std::abs(score));
      partition.values.push_back(segment.v.row(j, kv_head));
    }
  };
  for (const key_segment<K, V>& segment : sequence.segments) take(segment, segment.k.tokens);
  const index_t tail_keys = sequence.tail.k.tokens;
  if (tail_keys > 0) {
    take(sequence.tail,
         std::clamp<index_t>(query + tail_keys - sequence.queries.size() + 1, 0, tail_keys));
  }

  std::vector<real> weights;  // (partitions) natural logs
  real delta = 0;
  for (const auto& partition : partitions) {
    const real lse = log_sum_exp(partition.scores);
    const real weight =
        lse == -infinity ? lse : partition.log_weight_scale * lse + partition.log_weight;
    weights.push_back(weight);
    if (weight == -infinity) continue;
    delta = std::max(delta, partition.score_error * (1 + std::abs(partition.log_weight_scale)) +
                                4 * unit *
                                    (1 + std::abs(partition.log_weight_scale * lse) +
                                     std::abs(partition.log_weight)));
  }
  oracle_row<real> row;
  row.o.assign(static_cast<std::size_t>(arguments.o.head_dim), 0);
  row.o_bound = row.o;
  std::vector<real> magnitudes = row.o;  // sums of |value|, without weights
  const real sink = arguments.sink_logits.empty()
                        ? -infinity
                        : static_cast<real>(arguments.sink_logits[static_cast<std::size_t>(head)]);
  std::vector<real> with_sink = weights;
  with_sink.push_back(sink);
  row.lse = log_sum_exp(with_sink);
  for (std::size_t p = 0; p < partitions.size(); ++p) {
    if (weights[p] == -infinity) continue;
    const real lse = log_sum_exp(partitions[p].scores);
    for (std::size_t j = 0; j < partitions[p].scores.size(); ++j) {
      const real weight = std::exp(partitions[p].scores[j] - lse + weights[p] - row.lse);
      for (std::size_t t = 0; t < row.o.size(); ++t) {
        const auto value = static_cast<real>(load_scalar(partitions[p].values[j][t]));
        row.o[t] += weight * value;
        row.o_bound[t] += weight * std::abs(value);
        magnitudes[t] += std::abs(value);
      }
    }
  }
  for (std::size_t t = 0; t < row.o.size(); ++t) {
    row.o_bound[t] *= std::expm1(2 * delta) + 8 * unit + static_cast<real>(rounding.weight);
    // A weight below the smallest normal number may count as 0, as beside a large sink logit.
    row.o_bound[t] += static_cast<real>(std::numeric_limits<C>::min()) * magnitudes[t];
  }
  row.lse_bound = row.lse == -infinity ? 0 : delta + 4 * unit * (1 + std::abs(row.lse));
  return row;
}

/// Largest error of a call's outputs as a multiple of the bound: at most 1 is right, infinity when
/// something is NaN or a row that sees nothing is not exactly (0, -inf).
template <class Q, class K, class V, class O>
double largest_attend_error(const attend_arguments<Q, K, V, O>& arguments,
                            const attend_options& options,
                            const attend_rounding& rounding = {}) {
  double largest = 0;
  const auto note = [&](auto error, auto bound) {
    if (error == 0) return;
    const auto ratio = static_cast<double>(error / bound);
    if (!(ratio <= largest)) largest = std::isnan(ratio) ? HUGE_VAL : ratio;
  };
  for (const auto& sequence : arguments.sequences) {
    for (index_t query = 0; query < sequence.queries.size(); ++query) {
      for (index_t head = 0; head < arguments.q.heads; ++head) {
        const auto row = attend_oracle(arguments, options, sequence, query, head, rounding);
        using real = std::decay_t<decltype(row.lse)>;
        const index_t token = sequence.queries.begin + query;
        for (std::size_t t = 0; t < row.o.size(); ++t) {
          const auto found = static_cast<real>(load_scalar(arguments.o.row(token, head)[t]));
          // fp16 rounds small values to a multiple of 2^-24.
          const real tiny = format_of<O> == storage_format::fp16 ? 0x1p-25 : 0;
          note(std::abs(found - row.o[t]),
               row.o_bound[t] +
                   (row.lse == -std::numeric_limits<real>::infinity()
                        ? 0
                        : static_cast<real>(unit_roundoff<O>()) * std::abs(row.o[t]) + tiny));
        }
        if (!arguments.lse) continue;
        const auto found = static_cast<real>(arguments.lse.at(token, head));
        if (found != row.lse) note(std::abs(found - row.lse), row.lse_bound);
      }
    }
  }
  return largest;
}

}  // namespace blockattn_test
