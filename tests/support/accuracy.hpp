// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>

#include "support/forward_oracle.hpp"
#include "support/naive_attention.hpp"
#include "support/plain_tensors.hpp"

namespace blockattn_test {

/// What the differences between some results and the exact ones look like.
struct error_statistics {
  double largest = 0;         ///< max |e|
  double mean = 0;            ///< mean |e|
  double mean_signed = 0;     ///< mean e
  double standard_error = 0;  ///< of mean_signed
  double largest_exact = 0;   ///< max |exact|
};

/// Rows that see nothing (exact lse -inf) are left out; NaN makes every number NaN. `columns` says
/// which errors are independent: 0 = all of them; else those of different columns of a (rows,
/// columns) matrix, and the standard error is that of the columns' means (batch means).
template <class T, class Real>
error_statistics measure_errors(const std::vector<T>& values,
                                const std::vector<Real>& exact,
                                std::size_t columns = 0) {
  error_statistics s;
  std::vector<double> column_sums(columns);
  double squares = 0;
  double count = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isinf(exact[i])) continue;
    Real value;
    if constexpr (std::is_floating_point_v<T>) {
      value = static_cast<Real>(values[i]);
    } else {
      value = static_cast<Real>(load_scalar(values[i]));
    }
    const auto e = static_cast<double>(value - exact[i]);
    s.largest = std::isnan(e) ? e : std::max(s.largest, std::abs(e));
    s.mean += std::abs(e);
    s.mean_signed += e;
    squares += e * e;
    if (columns > 0) column_sums[i % columns] += e;
    s.largest_exact = std::max(s.largest_exact, static_cast<double>(std::abs(exact[i])));
    count += 1;
  }
  s.mean /= count;
  s.mean_signed /= count;
  if (columns > 0) {
    squares = 0;
    for (const double sum : column_sums) squares += sum * sum;
  }
  s.standard_error = std::sqrt(squares) / count;
  return s;
}

inline std::string describe(const error_statistics& s) {
  std::ostringstream text;
  text << "largest " << s.largest << ", mean " << s.mean << ", mean signed " << s.mean_signed
       << " +- " << s.standard_error;
  return text.str();
}

/// DESIGN.md, section 6.8, for one output: against the exact result a backend's errors are no worse
/// than twice the largest of the yardstick plus one rounding of the output, on average within 1.1
/// times from 1024 tokens on and 2.2 times below, and centred on 0 within 4 standard errors (and
/// `allowed_bias`).
inline void check_accuracy(const std::string& output,
                           const error_statistics& backend,
                           const error_statistics& yardstick,
                           double output_roundoff,
                           index_t tokens,
                           double allowed_bias = 0) {
  INFO(output << ", backend: " << describe(backend) << "\nyardstick: " << describe(yardstick));
  CHECK(backend.largest <= 2 * yardstick.largest + output_roundoff * backend.largest_exact);
  CHECK(backend.mean <= (tokens >= 1024 ? 1.1 : 2.2) * yardstick.mean);
  CHECK(std::abs(backend.mean_signed) <= 4 * backend.standard_error + allowed_bias);
}

/// What a naive implementation does to S and P that `Backend` is measured against: it rounds them
/// to T, unless the backend knows better: yardstick_rounding<T>.
template <class Backend, class T>
auto yardstick_rounding() {
  if constexpr (requires { typename Backend::template yardstick_rounding<T>; }) {
    return typename Backend::template yardstick_rounding<T>{};
  } else {
    return round_to<T>{};
  }
}

/// How far the mean error of o may lie to one side, for a backend whose sums of products are too
/// small by product_bias<T> of themselves.
template <class Backend, class T, class Real>
double allowed_product_bias(const std::vector<Real>& exact) {
  if constexpr (requires { Backend::template product_bias<T>; }) {
    Real sum = 0;
    for (const Real value : exact) sum += value;
    return Backend::template product_bias<T> *
           std::abs(static_cast<double>(sum) / static_cast<double>(exact.size()));
  } else {
    return 0;
  }
}

/// Normal inputs whose scores have the given standard deviation at the default scale. The larger it
/// is, the closer softmax is to a maximum, and the more digits scores and lse lose when they are
/// not subtracted in the units in which they were rounded.
template <class T>
plain_inputs<T> inputs_of_deviation(random_source& random,
                                    const attention_mask& mask,
                                    const plain_sizes& sizes,
                                    double score_deviation) {
  plain_inputs<T> in = random_inputs<T>(random, mask.query_tokens(), mask.key_tokens(), sizes);
  const auto factor = static_cast<accumulator_t<T>>(score_deviation);
  for (T& value : in.q) store_scalar(value, factor * load_scalar(value));
  return in;
}

/// The accuracy contract for o and lse of one call on normal data. The exact answer is fp64
/// (long double for double), the yardstick a naive implementation in the accumulator type that
/// rounds S and P (`yardstick_rounding`). Every score is proportional to the scale: a backend that
/// holds it rounded (`scale_error`) moves all lse to one side by that part of mean |d lse / d log
/// scale|. A backend whose exponentials are off to one side says by how much: `exponential_bias`.
/// Where scores are large, softmax is a maximum but for the few rows with a near tie, and these are
/// all that is compared: four draws are.
template <class T, class Backend>
void check_forward_accuracy(const Backend& backend,
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
  plain_outputs<T> out(0, sizes);
  naive_result<exact_real> exact;
  naive_result<C> naive;
  const auto append = [](auto& all, const auto& more) {
    all.insert(all.end(), more.begin(), more.end());
  };
  const auto append_each = [&](auto& all, const auto& more) {
    append(all.o, more.o);
    append(all.lse, more.lse);
  };
  for (int draw = 0; draw < (score_deviation > 1 ? 4 : 1); ++draw) {
    const plain_inputs<T> in = inputs_of_deviation<T>(random, mask.mask, sizes, score_deviation);
    append_each(out, run_forward(backend, in, mask.mask, options));
    const forward_arguments<T> arguments = {
        .q = token_major(in.q.data(), in.queries(), sizes.query_heads, sizes.head_dim),
        .k = token_major(in.k.data(), in.keys(), sizes.kv_heads, sizes.head_dim),
        .v = token_major(in.v.data(), in.keys(), sizes.kv_heads, sizes.value_dim),
        .o = {},
        .sink_logits = options.sink_logits};
    const auto truth =
        naive_attention<exact_real>(arguments, mask.mask, options.attention, no_rounding{});
    append_each(exact, truth);
    append(exact.mean_score, truth.mean_score);
    append_each(naive, naive_attention<C>(arguments, mask.mask, options.attention,
                                          yardstick_rounding<Backend, T>()));
  }
  std::vector<T> naive_o(naive.o.size());
  for (std::size_t i = 0; i < naive_o.size(); ++i) store_scalar(naive_o[i], naive.o[i]);
  check_accuracy("o", measure_errors(out.o, exact.o), measure_errors(naive_o, exact.o),
                 unit_roundoff<T>(), tokens, allowed_product_bias<Backend, T>(exact.o));
  double scale_sensitivity = 0;
  for (const exact_real score : exact.mean_score) {
    scale_sensitivity += static_cast<double>(std::abs(score));
  }
  scale_sensitivity /= static_cast<double>(exact.mean_score.size());
  double allowed_bias = Backend::template scale_error<T> * scale_sensitivity;
  if constexpr (requires { Backend::exponential_bias; }) allowed_bias += Backend::exponential_bias;
  check_accuracy("lse", measure_errors(out.lse, exact.lse), measure_errors(naive.lse, exact.lse),
                 unit_roundoff<C>(), tokens, allowed_bias);
}

}  // namespace blockattn_test
