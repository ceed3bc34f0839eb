// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/dense_mask.hpp>
#include <cmath>
#include <sstream>

#include "support/backward_case.hpp"
#include "support/catch.hpp"
#include "support/forward_oracle.hpp"

namespace blockattn_test {

/// A (tokens, heads, dim) matrix of expected values, each with a bound for its error.
struct expected_gradient {
  index_t heads = 0;
  index_t dim = 0;
  std::vector<double> value;
  std::vector<double> bound;

  expected_gradient(index_t tokens, index_t head_count, index_t head_dim)
      : heads(head_count),
        dim(head_dim),
        value(static_cast<std::size_t>(tokens * heads * dim)),
        bound(value.size()) {}

  double& bound_at(index_t token, index_t head, index_t t) {
    return bound[static_cast<std::size_t>((token * heads + head) * dim + t)];
  }

  /// The first element of `actual` that is wrong, in words. Where nothing contributes the bound is
  /// 0: the gradient is exactly 0. Written so that NaN is wrong.
  template <class T>
  std::string first_difference(const char* name, const heads_view<T>& actual) const {
    const double smallest = format_of<T> == storage_format::fp16 ? 0x1p-24 : 1e-35;
    for (index_t i = 0; i < actual.tokens; ++i) {
      for (index_t h = 0; h < heads; ++h) {
        for (index_t t = 0; t < dim; ++t) {
          const auto at = static_cast<std::size_t>((i * heads + h) * dim + t);
          const auto got = static_cast<double>(load_scalar(actual.row(i, h)[t]));
          const double limit =
              bound[at] > 0 ? bound[at] + unit_roundoff<T>() * std::abs(value[at]) + smallest : 0;
          if (std::abs(got - value[at]) <= limit) continue;
          std::ostringstream text;
          text.precision(9);
          text << name << "[token " << i << ", head " << h << ", " << t << "] is " << got
               << ", must be " << value[at] << " +- " << limit;
          return text.str();
        }
      }
    }
    return "";
  }
};

/// What `reference::backward` says about a case, on the stored inputs in fp64, with bounds for the
/// error of a backend that accumulates in C. With u the unit roundoff of C and the error of a sum
/// of n terms taken as u (8 + sqrt(n)) times the sum of their magnitudes, for one pair:
///   score   e_s = sum_error(d) |scale| sum |q k|
///   weight  e_p = p (e_s + u (8 + 4 |s| + 4 |lse|))
///   d_s     p (e(d_o . v) + e(d_o . o)) + (e_p + 4 u p) |d_o . v - delta|, and with softcap the
///           change of 1 - t^2 when t is off by e_s / softcap + 4 u
/// which d_q, d_k and d_v sum over pairs, with the error of these sums themselves. A backend that
/// rounds weights and d_s before it multiplies them adds that rounding.
template <class Q, class K, class V, class O, class DQ = Q, class DK = K, class DV = V>
class backward_oracle {
 public:
  using tensors_type = backward_tensors<Q, K, V, O, DQ, DK, DV>;
  using C = typename tensors_type::C;

  backward_oracle(tensors_type& tensors, const attention_case& c, double weight_roundoff = 0)
      : c_(c),
        weight_roundoff_(weight_roundoff),
        q_(to_fp64(tensors.in.q.view())),
        k_(to_fp64(tensors.in.k.view())),
        v_(to_fp64(tensors.in.v.view())),
        o_(to_fp64(tensors.in.o.view())),
        d_o_(to_fp64(tensors.d_o.view())),
        d_q_(c.query_tokens(), c.query_heads, c.head_dim),
        d_k_(c.key_tokens(), c.kv_heads, c.head_dim),
        d_v_(c.key_tokens(), c.kv_heads, c.value_dim),
        d_sink_(1, static_cast<index_t>(tensors.d_sink_logits.size()), 1) {
    const auto arguments = tensors.arguments();
    for (index_t i = 0; i < c.query_tokens(); ++i) {
      for (index_t h = 0; h < c.query_heads; ++h) {
        lse_.push_back(static_cast<double>(arguments.lse.at(i, h)));
        d_lse_.push_back(arguments.d_lse ? static_cast<double>(arguments.d_lse.at(i, h)) : 0);
      }
    }
    sink_logits_.assign(tensors.in.sink_logits.begin(), tensors.in.sink_logits.end());
    for (index_t h = 0; h < c.query_heads; ++h) {
      add_head(h);
      bound_head(h);
    }
  }

  std::string first_difference(tensors_type& tensors) const {
    const auto a = tensors.arguments();
    for (const std::string& text :
         {d_q_.first_difference("d_q", a.d_q), d_k_.first_difference("d_k", a.d_k),
          d_v_.first_difference("d_v", a.d_v),
          d_sink_.first_difference("d_sink_logits",
                                   token_major(a.d_sink_logits.data(), 1, d_sink_.heads, 1))}) {
      if (!text.empty()) return text;
    }
    return "";
  }

 private:
  static constexpr double u = unit_roundoff<C>();
  static double sum_error(index_t terms) { return u * (8 + std::sqrt(static_cast<double>(terms))); }
  index_t group() const { return c_.query_heads / c_.kv_heads; }

  /// The reference on one head; d_k and d_v sum over the heads of a kv head.
  void add_head(index_t h) {
    const index_t queries = c_.query_tokens();
    const index_t keys = c_.key_tokens();
    const auto view = [](auto& matrix, index_t tokens, index_t heads, index_t dim, index_t head) {
      return head_of(token_major(matrix.data(), tokens, heads, dim), head);
    };
    std::vector<double> d_k(static_cast<std::size_t>(keys * c_.head_dim));
    std::vector<double> d_v(static_cast<std::size_t>(keys * c_.value_dim));
    const auto sink = static_cast<std::size_t>(h);
    const bool sinks = !sink_logits_.empty();
    const index_t kv = h / group();
    const auto& [q, k, v, o, d_o] = std::tie(q_, k_, v_, o_, d_o_);
    reference::backward<double>(
        {.q = view(q, queries, c_.query_heads, c_.head_dim, h),
         .k = view(k, keys, c_.kv_heads, c_.head_dim, kv),
         .v = view(v, keys, c_.kv_heads, c_.value_dim, kv),
         .o = view(o, queries, c_.query_heads, c_.value_dim, h),
         .lse = head_of(token_major_lse<const double>(lse_.data(), queries, c_.query_heads), h),
         .d_o = view(d_o, queries, c_.query_heads, c_.value_dim, h),
         .d_q = view(d_q_.value, queries, c_.query_heads, c_.head_dim, h),
         .d_k = token_major(d_k.data(), keys, 1, c_.head_dim),
         .d_v = token_major(d_v.data(), keys, 1, c_.value_dim),
         .d_lse = head_of(token_major_lse<const double>(d_lse_.data(), queries, c_.query_heads), h),
         .sink_logits = std::span<const double>(sink_logits_).subspan(sinks ? sink : 0, sinks),
         .d_sink_logits = std::span<double>(d_sink_.value).subspan(sinks ? sink : 0, sinks)},
        c_.masks.of_head(h), c_.options);
    const auto add = [&](const std::vector<double>& part, expected_gradient& sum) {
      for (index_t j = 0; j < keys; ++j) {
        for (index_t t = 0; t < sum.dim; ++t) {
          sum.value[static_cast<std::size_t>((j * sum.heads + kv) * sum.dim + t)] +=
              part[static_cast<std::size_t>(j * sum.dim + t)];
        }
      }
    };
    add(d_k, d_k_);
    add(d_v, d_v_);
  }

  void bound_head(index_t h) {
    const index_t d = c_.head_dim;
    const index_t value_dim = c_.value_dim;
    const index_t kv = h / group();
    const double scale = detail::resolved_scale(c_.options.scale, d);
    const double cap = c_.options.softcap;
    const double over_keys = sum_error(c_.key_tokens());
    const double over_queries = sum_error(c_.query_tokens() * group());
    const std::vector<std::uint8_t> visible = to_dense(c_.masks.of_head(h));
    for (index_t i = 0; i < c_.query_tokens(); ++i) {
      const index_t row = i * c_.query_heads + h;
      const double* const q = q_.data() + row * d;
      const double* const o = o_.data() + row * value_dim;
      const double* const d_o = d_o_.data() + row * value_dim;
      const double lse = lse_[static_cast<std::size_t>(row)];
      const double d_lse = d_lse_[static_cast<std::size_t>(row)];
      const auto [delta_dot, delta_size] = dot(d_o, o, value_dim);
      const double delta = delta_dot - d_lse;
      const double e_delta =
          sum_error(value_dim) * delta_size + u * (std::abs(delta) + std::abs(d_lse));
      if (!sink_logits_.empty() && !std::isinf(sink_logits_[static_cast<std::size_t>(h)])) {
        const double share = std::exp(sink_logits_[static_cast<std::size_t>(h)] - lse);
        d_sink_.bound_at(0, h, 0) += share * (e_delta + 8 * u * std::abs(delta)) + 1e-300;
      }
      for (index_t j = 0; j < c_.key_tokens(); ++j) {
        if (visible[static_cast<std::size_t>(i * c_.key_tokens() + j)] == 0) continue;
        const double* const k = k_.data() + (j * c_.kv_heads + kv) * d;
        const double* const v = v_.data() + (j * c_.kv_heads + kv) * value_dim;
        const auto [product, size] = dot(q, k, d);
        const double e_s = sum_error(d) * std::abs(scale) * size;
        const double t = cap > 0 ? std::tanh(scale * product / cap) : 0;
        const double s = cap > 0 ? cap * t : scale * product;
        const double p = std::exp(s - lse);
        const double e_p = p * (e_s + u * (8 + 4 * std::abs(s) + 4 * std::abs(lse)));
        const auto [dp, dp_size] = dot(d_o, v, value_dim);
        const double off = std::abs(dp - delta);
        const double e_dp = sum_error(value_dim) * dp_size;
        const double bend = cap > 0 ? 1 - t * t : 1;
        const double e_bend = cap > 0 ? 2 * (e_s / cap + 4 * u) : 0;
        const double d_x = std::abs(scale) * p * off * bend;
        const double e_x =
            std::abs(scale) *
            (bend * (p * (e_dp + e_delta) + (e_p + 4 * u * p) * off) + p * off * e_bend);
        // Rounded to 16 bits, in fp16 perhaps below its normal numbers.
        const double smallest = weight_roundoff_ > 0 && sizeof(Q) == 2 ? 0x1p-25 : 0;
        const double r_x = weight_roundoff_ * d_x + smallest * std::abs(scale);
        const double r_p = weight_roundoff_ * p + smallest;
        for (index_t x = 0; x < d; ++x) {
          d_q_.bound_at(i, h, x) += (e_x + r_x + over_keys * d_x) * std::abs(k[x]);
          d_k_.bound_at(j, kv, x) += (e_x + r_x + over_queries * d_x) * std::abs(q[x]);
        }
        for (index_t x = 0; x < value_dim; ++x) {
          d_v_.bound_at(j, kv, x) += (e_p + r_p + over_queries * p) * std::abs(d_o[x]);
        }
      }
    }
  }

  /// The product and the sum of the magnitudes of its terms.
  static std::pair<double, double> dot(const double* a, const double* b, index_t count) {
    double sum = 0;
    double size = 0;
    for (index_t t = 0; t < count; ++t) {
      sum += a[t] * b[t];
      size += std::abs(a[t] * b[t]);
    }
    return {sum, size};
  }

  const attention_case& c_;
  double weight_roundoff_;
  std::vector<double> q_, k_, v_, o_, d_o_;
  std::vector<double> lse_, d_lse_;  ///< (query_tokens, query_heads)
  std::vector<double> sink_logits_;
  expected_gradient d_q_, d_k_, d_v_, d_sink_;
};

/// One backward call of a backend against the reference: right results, margins untouched. A
/// backend is anything with
///   backward(backward_arguments, head_masks, attention_options) const;
/// one that rounds what it multiplies says so by weight_roundoff<V>.
template <class Q,
          class K,
          class V,
          class O,
          class DQ = Q,
          class DK = K,
          class DV = V,
          class Backend>
void check_backward_case(const Backend& backend, const attention_case& c) {
  INFO(c.describe());
  backward_tensors<Q, K, V, O, DQ, DK, DV> tensors(c);
  backend.backward(tensors.arguments(), c.masks, c.options);
  double weight_roundoff = 0;
  if constexpr (requires { Backend::template weight_roundoff<V>; }) {
    weight_roundoff = Backend::template weight_roundoff<V>;
  }
  const backward_oracle<Q, K, V, O, DQ, DK, DV> oracle(tensors, c, weight_roundoff);
  CHECK(oracle.first_difference(tensors) == "");
  CHECK(tensors.margins_untouched());
}

/// `count` random calls; BLOCKATTN_SEED repeats one of them first.
template <class Q,
          class K,
          class V,
          class O,
          class DQ = Q,
          class DK = K,
          class DV = V,
          class Backend>
void check_random_backward_cases(const Backend& backend,
                                 std::uint64_t default_seed,
                                 int count,
                                 const case_limits& limits = {}) {
  const std::uint64_t seed = test_seed(default_seed);
  for (int i = 0; i < test_cases(count); ++i) {
    check_backward_case<Q, K, V, O, DQ, DK, DV>(
        backend, random_backward_case(seed + static_cast<std::uint64_t>(i), limits));
  }
}

}  // namespace blockattn_test
