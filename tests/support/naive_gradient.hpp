// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/accuracy.hpp"
#include "support/plain_gradients.hpp"

namespace blockattn_test {

/// Gradients in the arithmetic type, token-major.
template <class Real>
struct naive_gradients {
  std::vector<Real> d_q, d_k, d_v;
};

/// The gradient of attention as one would first write it, from the o and lse of naive_attention
/// with the same Real and round: the matrices S, P, dP and dS as a whole, each passed through
/// `round` (o too: it is stored between the passes), sums from left to right.
/// - Real = long double or double without rounding: an exact answer that shares no line with the
///   library.
/// - Real = the accumulator, round_to<T>: the yardstick of the accuracy contract (DESIGN.md, 6.8).
template <class Real, class T, class Round>
naive_gradients<Real> naive_gradient(const plain_inputs<T>& in,
                                     const plain_loss<T>& loss,
                                     const attention_mask& mask,
                                     const plain_options<T>& options,
                                     const Round& round) {
  const plain_sizes& s = in.sizes;
  const naive_result<Real> forward = naive_attention<Real>(
      forward_arguments<T>{.q = token_major(in.q.data(), in.queries(), s.query_heads, s.head_dim),
                           .k = token_major(in.k.data(), in.keys(), s.kv_heads, s.head_dim),
                           .v = token_major(in.v.data(), in.keys(), s.kv_heads, s.value_dim),
                           .o = {},
                           .sink_logits = options.sink_logits},
      mask, options.attention, round);
  const std::vector<std::uint8_t> visible = to_dense(mask);
  const auto scale = static_cast<Real>(detail::resolved_scale(options.attention.scale, s.head_dim));
  const auto cap = static_cast<Real>(options.attention.softcap);
  const auto real = [](const std::vector<T>& values) {
    std::vector<Real> result;
    for (const T& value : values) result.push_back(static_cast<Real>(load_scalar(value)));
    return result;
  };
  const std::vector<Real> q = real(in.q), k = real(in.k), v = real(in.v), d_o = real(loss.d_o);
  std::vector<Real> o = forward.o;
  for (Real& value : o) value = round(value);
  naive_gradients<Real> g = {std::vector<Real>(q.size()), std::vector<Real>(k.size()),
                             std::vector<Real>(v.size())};
  const auto dot = [](const Real* a, const Real* b, index_t count) {
    Real sum = 0;
    for (index_t t = 0; t < count; ++t) sum += a[t] * b[t];
    return sum;
  };
  const auto add = [](Real* sum, const Real* row, Real factor, index_t count) {
    for (index_t t = 0; t < count; ++t) sum[t] += factor * row[t];
  };
  for (index_t i = 0; i < in.queries(); ++i) {
    for (index_t h = 0; h < s.query_heads; ++h) {
      const index_t row = i * s.query_heads + h;
      const Real* const q_row = q.data() + row * s.head_dim;
      const Real* const d_o_row = d_o.data() + row * s.value_dim;
      const Real delta = dot(d_o_row, o.data() + row * s.value_dim, s.value_dim);
      for (index_t j = 0; j < in.keys(); ++j) {
        if (visible[static_cast<std::size_t>(i * in.keys() + j)] == 0) continue;
        const index_t key = j * s.kv_heads + h / (s.query_heads / s.kv_heads);
        const Real* const k_row = k.data() + key * s.head_dim;
        Real x = round(scale * dot(q_row, k_row, s.head_dim));
        if (cap > 0) x = round(cap * std::tanh(x / cap));
        const Real p = round(std::exp(x - forward.lse[static_cast<std::size_t>(row)]));
        const Real d_p = round(dot(d_o_row, v.data() + key * s.value_dim, s.value_dim));
        const Real t = cap > 0 ? x / cap : Real(0);
        const Real d_s = round(p * (d_p - delta) * (1 - t * t));
        add(g.d_v.data() + key * s.value_dim, d_o_row, p, s.value_dim);
        add(g.d_q.data() + row * s.head_dim, k_row, scale * d_s, s.head_dim);
        add(g.d_k.data() + key * s.head_dim, q_row, scale * d_s, s.head_dim);
      }
    }
  }
  return g;
}

/// The accuracy contract for d_q, d_k and d_v of a whole forward and backward on normal data. The
/// largest error is that of a few rows where much cancels: it is compared over four draws.
template <class T, class Backend>
void check_backward_accuracy(const Backend& backend,
                             std::uint64_t seed,
                             const named_mask& mask,
                             const plain_sizes& sizes,
                             const plain_options<T>& options,
                             double score_deviation = 1) {
  using C = accumulator_t<T>;
  using exact_real = std::conditional_t<std::is_same_v<C, double>, long double, double>;
  INFO(mask.kind << ", " << mask.mask.query_tokens() << " tokens, head_dim " << sizes.head_dim
                 << ", scores of " << score_deviation << ", BLOCKATTN_SEED=" << seed);
  random_source random(seed);
  const index_t tokens = mask.mask.query_tokens();
  plain_gradients<T> g;
  naive_gradients<exact_real> exact;
  naive_gradients<C> naive;
  const auto append = [](auto& all, const auto& more) {
    all.insert(all.end(), more.begin(), more.end());
  };
  const auto append_each = [&](auto& all, const auto& more) {
    append(all.d_q, more.d_q);
    append(all.d_k, more.d_k);
    append(all.d_v, more.d_v);
  };
  for (int draw = 0; draw < 4; ++draw) {
    const plain_inputs<T> in = inputs_of_deviation<T>(random, mask.mask, sizes, score_deviation);
    const plain_loss<T> loss = random_loss(random, in, false);
    append_each(g, run_gradients(backend, in, loss, mask.mask, options));
    append_each(exact, naive_gradient<exact_real>(in, loss, mask.mask, options, no_rounding{}));
    append_each(naive, naive_gradient<C>(in, loss, mask.mask, options, round_to<T>{}));
  }
  const auto check = [&](const char* name, const std::vector<T>& values,
                         const std::vector<exact_real>& truth, const std::vector<C>& yardstick,
                         index_t dim) {
    std::vector<T> stored(yardstick.size());
    for (std::size_t i = 0; i < stored.size(); ++i) store_scalar(stored[i], yardstick[i]);
    // A rounded o moves delta, and with it d_s of every key of the row: errors of d_k are
    // independent only from column to column.
    const auto columns = static_cast<std::size_t>(dim);
    check_accuracy(name, measure_errors(values, truth, columns),
                   measure_errors(stored, truth, columns), unit_roundoff<T>(), tokens);
  };
  check("d_q", g.d_q, exact.d_q, naive.d_q, sizes.head_dim);
  check("d_k", g.d_k, exact.d_k, naive.d_k, sizes.head_dim);
  check("d_v", g.d_v, exact.d_v, naive.d_v, sizes.value_dim);
}

}  // namespace blockattn_test
