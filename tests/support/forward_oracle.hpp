// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/reference/forward.hpp>
#include <cmath>
#include <sstream>

#include "support/attention_case.hpp"
#include "support/catch.hpp"
#include "support/unit_roundoff.hpp"

namespace blockattn_test {

/// A contiguous fp64 copy, token-major; NaN stays NaN.
template <class T>
std::vector<double> to_fp64(const heads_view<T>& view) {
  std::vector<double> values;
  for (index_t token = 0; token < view.tokens; ++token) {
    for (index_t head = 0; head < view.heads; ++head) {
      for (index_t t = 0; t < view.head_dim; ++t) {
        values.push_back(static_cast<double>(load_scalar(view.row(token, head)[t])));
      }
    }
  }
  return values;
}

/// What `reference::forward` says about a case, on the stored inputs in fp64, with a bound for the
/// error of a backend that accumulates in `C`. The bound follows from the data: with u the unit
/// roundoff of C, a score is off by e = u (8 + sqrt(d)) |scale| sum_t |q_t k_t| (rounding errors of
/// a sum grow like a random walk), hence o by (2 e + u (8 + sqrt(n)) + u_weights) sum_j p_j |v_j|
/// and one rounding to its storage; lse by e + u (8 + sqrt(n) + 4 |lse|).
template <class Q, class K, class V, class O>
class forward_oracle {
 public:
  using C = accumulator_t<Q, K, V, O>;

  /// `weight_roundoff`: of the softmax weights that are multiplied with values. By default that of
  /// bf16 operands, which may be multiplied as such.
  forward_oracle(const attention_tensors<Q, K, V, O>& tensors,
                 const attention_case& c,
                 double weight_roundoff = all_bf16 ? unit_roundoff<bfloat16>() : 0)
      : c_(c),
        weight_error_(weight_roundoff),
        q_(to_fp64(tensors.q.view())),
        k_(to_fp64(tensors.k.view())),
        v_(to_fp64(tensors.v.view())),
        o_(static_cast<std::size_t>(c.query_tokens() * c.query_heads * c.value_dim)),
        absolute_(o_.size()),
        lse_(static_cast<std::size_t>(c.query_tokens() * c.query_heads)) {
    sink_logits_.assign(tensors.sink_logits.begin(), tensors.sink_logits.end());
    run(o_);
    for (double& value : v_) value = std::abs(value);
    run(absolute_);
  }

  /// The first row of the results that is wrong, in words; empty when all are right.
  std::string first_difference(const attention_tensors<Q, K, V, O>& tensors) const {
    const auto o = tensors.o.view();
    const auto lse = tensors.lse.as_lse();
    for (index_t i = 0; i < c_.query_tokens(); ++i) {
      for (index_t h = 0; h < c_.query_heads; ++h) {
        const double score_error = score_error_of_row(i, h);
        const double true_lse = lse_[static_cast<std::size_t>(i * c_.query_heads + h)];
        for (index_t t = 0; t < c_.value_dim; ++t) {
          const auto at = static_cast<std::size_t>((i * c_.query_heads + h) * c_.value_dim + t);
          const auto value = static_cast<double>(load_scalar(o.row(i, h)[t]));
          const double bound =
              absolute_[at] * (2 * score_error + sum_error() + weight_error_ + unit_roundoff<O>()) +
              smallest_output;
          // A row that sees nothing is exactly 0. Written so that NaN is wrong.
          const double limit = absolute_[at] > 0 ? bound : 0;
          if (!(std::abs(value - o_[at]) <= limit)) {
            return text("o", i, h, t, value, o_[at], limit);
          }
        }
        if (!c_.with_lse) continue;
        const auto value = static_cast<double>(lse.at(i, h));
        const bool exact = value == true_lse;  // -inf, or the sink logit of an empty row
        const double bound = score_error + sum_error() + 4 * u * std::abs(true_lse);
        if (!exact && !(std::abs(value - true_lse) <= bound)) {
          return text("lse", i, h, 0, value, true_lse, bound);
        }
      }
    }
    return "";
  }

 private:
  static constexpr double u = unit_roundoff<C>();
  static constexpr bool all_bf16 = format_of<Q> == storage_format::bf16 &&
                                   format_of<K> == storage_format::bf16 &&
                                   format_of<V> == storage_format::bf16;
  static constexpr double smallest_output = format_of<O> == storage_format::fp16 ? 0x1p-24 : 1e-37;

  double sum_error() const { return u * (8 + std::sqrt(static_cast<double>(c_.key_tokens()))); }

  void run(std::vector<double>& o) {
    const index_t queries = c_.query_tokens();
    const index_t heads = c_.query_heads;
    for (index_t h = 0; h < heads; ++h) {
      const auto head_of = [](auto view, index_t head) {
        view.data += head * view.head_stride;
        view.heads = 1;
        return view;
      };
      const index_t kv_head = h / (heads / c_.kv_heads);
      auto lse = token_major_lse(lse_.data(), queries, heads);
      lse.data += h;
      lse.heads = 1;
      const auto sink = static_cast<std::size_t>(h);
      reference::forward<double>(
          {.q = head_of(token_major<const double>(q_.data(), queries, heads, c_.head_dim), h),
           .k = head_of(
               token_major<const double>(k_.data(), c_.key_tokens(), c_.kv_heads, c_.head_dim),
               kv_head),
           .v = head_of(
               token_major<const double>(v_.data(), c_.key_tokens(), c_.kv_heads, c_.value_dim),
               kv_head),
           .o = head_of(token_major(o.data(), queries, heads, c_.value_dim), h),
           .lse = lse,
           .sink_logits = sink_logits_.empty() ? std::span<const double>{}
                                               : std::span<const double>(&sink_logits_[sink], 1)},
          c_.masks.of_head(h), c_.options);
    }
  }

  /// Of the visible pairs of a row, the largest.
  double score_error_of_row(index_t i, index_t h) const {
    const auto d = c_.head_dim;
    const double* const q = q_.data() + (i * c_.query_heads + h) * d;
    const double scale = std::abs(detail::resolved_scale(c_.options.scale, d));
    double largest = 0;
    for (const slice& s : c_.masks.of_head(h).slices()) {
      if (!s.queries.contains(i)) continue;
      const index_range keys = s.keys_of(i);
      for (index_t j = keys.begin; j < keys.end; ++j) {
        const double* const k =
            k_.data() + (j * c_.kv_heads + h / (c_.query_heads / c_.kv_heads)) * d;
        double sum = 0;
        for (index_t t = 0; t < d; ++t) sum += std::abs(q[t] * k[t]);
        largest = std::max(largest, sum);
      }
    }
    return u * (8 + std::sqrt(static_cast<double>(d))) * scale * largest;
  }

  static std::string text(const char* what,
                          index_t query,
                          index_t head,
                          index_t column,
                          double value,
                          double expected,
                          double bound) {
    std::ostringstream out;
    out.precision(9);
    out << what << "[query " << query << ", head " << head << ", " << column << "] is " << value
        << ", must be " << expected << " +- " << bound;
    return out.str();
  }

  const attention_case& c_;
  double weight_error_;
  std::vector<double> q_, k_, v_;
  std::vector<double> o_;         ///< (query_tokens, query_heads, value_dim)
  std::vector<double> absolute_;  ///< the same with |v|: sum_j p_j |v_j|
  std::vector<double> lse_;       ///< (query_tokens, query_heads)
  std::vector<double> sink_logits_;
};

/// One call of a backend against the reference: right results, margins untouched, an lse that was
/// not asked for not written. A backend is anything with
///   forward(forward_arguments, head_masks, attention_options) const;
/// one that rounds weights in its own way says so by weight_roundoff<V>.
template <class Q, class K, class V, class O, class Backend>
void check_forward_case(const Backend& backend, const attention_case& c) {
  INFO(c.describe());
  const attention_tensors<Q, K, V, O> tensors(c);
  backend.forward(tensors.arguments(), c.masks, c.options);
  const auto oracle = [&] {
    if constexpr (requires { Backend::template weight_roundoff<V>; }) {
      return forward_oracle<Q, K, V, O>(tensors, c, Backend::template weight_roundoff<V>);
    } else {
      return forward_oracle<Q, K, V, O>(tensors, c);
    }
  }();
  CHECK(oracle.first_difference(tensors) == "");
  CHECK(tensors.margins_untouched());
  if (!c.with_lse) CHECK(tensors.lse.all_untouched());
}

/// `count` random calls; BLOCKATTN_SEED repeats one of them first.
template <class Q, class K, class V, class O, class Backend>
void check_random_cases(const Backend& backend,
                        std::uint64_t default_seed,
                        int count,
                        const case_limits& limits = {}) {
  const std::uint64_t seed = test_seed(default_seed);
  for (int i = 0; i < test_cases(count); ++i) {
    check_forward_case<Q, K, V, O>(
        backend, random_attention_case(seed + static_cast<std::uint64_t>(i), limits));
  }
}

}  // namespace blockattn_test
