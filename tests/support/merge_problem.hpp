// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_backward_arguments.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/hostile_tensor.hpp"
#include "support/random.hpp"
#include "support/unit_roundoff.hpp"

/// \file
/// Random merges with the gradients of their results, and what both must give. A backend has
/// `merge` and `merge_backward`, which take the arguments of those names.

namespace blockattn_test {

template <class C>
inline constexpr C infinity = std::numeric_limits<C>::infinity();

inline constexpr auto all_tokens = [](index_t) { return true; };

struct merge_sizes {
  index_t states = 2;
  index_t tokens = 3;
  index_t heads = 2;
  index_t value_dim = 5;
  bool hostile =
      true;  ///< tensors lie anyhow; else rows of 8 values begin at multiples of 16 bytes

  tensor_layout layout(random_source& random) const {
    const tensor_layout any = random_tensor_layout(random);
    return hostile ? any : tensor_layout{.head_major = any.head_major};
  }
};

template <class D>
struct merge_gradients {
  using C = accumulator_t<D>;
  std::vector<hostile_tensor<D>> d_o;
  std::vector<hostile_tensor<C>> d_lse;
  std::vector<hostile_tensor<C>> d_row_log_weights;
  std::vector<C> d_sink_logits;
};

/// The inputs of a merge and the gradients of its results, between hostile margins. Rows of o that
/// must not be read stay NaN.
template <class P, class O = P, class D = P>
struct merge_problem {
  using C = accumulator_t<P, O, D>;

  merge_sizes sizes;
  std::vector<hostile_tensor<P>> o;
  std::vector<hostile_tensor<C>> lse;
  std::vector<hostile_tensor<C>> row_log_weights;
  std::vector<partial_state<P, C>> states;
  hostile_tensor<O> d_o;
  hostile_tensor<C> d_lse;
  std::vector<C> sink_logits;

  /// States that are there in every row, merged plainly.
  merge_problem(random_source& random, const merge_sizes& shape)
      : sizes(shape),
        d_o(shape.tokens, shape.heads, shape.value_dim, shape.layout(random)),
        d_lse(shape.tokens, shape.heads, 1, shape.layout(random)) {
    for (index_t s = 0; s < shape.states; ++s) {
      o.emplace_back(shape.tokens, shape.heads, shape.value_dim, shape.layout(random));
      lse.emplace_back(shape.tokens, shape.heads, 1, shape.layout(random));
      row_log_weights.emplace_back(shape.tokens, shape.heads, 1, shape.layout(random));
      o.back().fill_normal(random, 1, all_tokens);
      lse.back().fill_normal(random, 2, all_tokens);
      row_log_weights.back().fill_normal(random, 2, all_tokens);
      states.push_back({.o = o.back().view(), .lse = lse.back().as_lse()});
    }
    d_o.fill_normal(random, 1, all_tokens);
    d_lse.fill_normal(random, 1, all_tokens);
  }

  /// Every kind of state, weight, absence and sink.
  void vary(random_source& random) {
    for (std::size_t s = 0; s < states.size(); ++s) {
      const double scales[] = {1, 0.81, 0, -0.5};
      states[s].log_weight_scale = scales[random.integer(0, 3)];
      states[s].log_weight = random.chance(0.5) ? random.normal() : 0;
      if (random.chance(0.5)) states[s].row_log_weights = row_log_weights[s].as_lse();
      const bool gone = random.chance(0.15);
      if (gone) states[s].log_weight = -infinity<double>;
      for_each_row([&](index_t token, index_t head) {
        const bool absent = random.chance(0.2);
        if (absent) lse[s].as_lse().at(token, head) = -infinity<C>;
        if (absent)
          row_log_weights[s].as_lse().at(token, head) = std::numeric_limits<C>::quiet_NaN();
        if (!absent && !gone) return;
        for (index_t i = 0; i < sizes.value_dim; ++i) {
          store_scalar(o[s].view().row(token, head)[i], std::nan(""));
        }
      });
    }
    if (random.chance(0.6)) {
      for (index_t head = 0; head < sizes.heads; ++head) {
        sink_logits.push_back(random.chance(0.3) ? -infinity<C> : static_cast<C>(random.normal()));
      }
    }
  }

  template <class F>
  void for_each_row(const F& f) const {
    for (index_t token = 0; token < sizes.tokens; ++token) {
      for (index_t head = 0; head < sizes.heads; ++head) f(token, head);
    }
  }

  merge_gradients<D> unwritten(random_source& random) const {
    merge_gradients<D> result;
    for (index_t s = 0; s < sizes.states; ++s) {
      const auto tensor = [&]<class T>(T, index_t dim) {
        return hostile_tensor<T>(sizes.tokens, sizes.heads, dim, sizes.layout(random));
      };
      result.d_o.push_back(tensor(D{}, sizes.value_dim));
      result.d_lse.push_back(tensor(C{}, 1));
      result.d_row_log_weights.push_back(tensor(C{}, 1));
    }
    result.d_sink_logits.assign(sink_logits.size(), std::numeric_limits<C>::quiet_NaN());
    return result;
  }

  std::vector<partial_state_gradient<D, C>> targets(const merge_gradients<D>& result) const {
    std::vector<partial_state_gradient<D, C>> targets;
    for (std::size_t s = 0; s < states.size(); ++s) {
      targets.push_back({.d_o = result.d_o[s].view(), .d_lse = result.d_lse[s].as_lse()});
      if (states[s].row_log_weights) {
        targets[s].d_row_log_weights = result.d_row_log_weights[s].as_lse();
      }
    }
    return targets;
  }

  template <class Backend>
  merge_gradients<D> differentiate(const Backend& backend, random_source& random) const {
    merge_gradients<D> result = unwritten(random);
    const auto into = targets(result);
    backend.merge_backward(
        merge_backward_arguments<P, O, D>{.states = states,
                                          .d_o = d_o.view(),
                                          .d_lse = d_lse.as_lse(),
                                          .gradients = into,
                                          .sink_logits = sink_logits,
                                          .d_sink_logits = result.d_sink_logits});
    for (std::size_t s = 0; s < states.size(); ++s) {
      REQUIRE(result.d_o[s].margins_untouched());
      REQUIRE(result.d_lse[s].margins_untouched());
      REQUIRE((states[s].row_log_weights ? result.d_row_log_weights[s].margins_untouched()
                                         : result.d_row_log_weights[s].all_untouched()));
    }
    return result;
  }
};

/// The formulas with the merged o and lse, one row of one state, in fp64: w = exp(lse_s - lse),
/// d_o_s = w d_o, d_lse_s = w d_o . (o_s - o) + w d_lse.
struct row_formula {
  double lse = -infinity<double>;
  std::vector<double> o;
  std::vector<double> share;

  template <class Problem>
  row_formula(const Problem& problem, index_t token, index_t head)
      : o(static_cast<std::size_t>(problem.sizes.value_dim)), share(problem.states.size()) {
    double sum = 0;
    for (std::size_t s = 0; s < share.size(); ++s) {
      const auto& state = problem.states[s];
      const double state_lse = state.lse.at(token, head);
      if (state_lse == -infinity<double>) continue;
      const double row = state.row_log_weights ? state.row_log_weights.at(token, head) : 0;
      share[s] = std::exp(state.log_weight_scale * state_lse + state.log_weight + row);
      sum += share[s];
    }
    if (!problem.sink_logits.empty()) {
      sum += std::exp(static_cast<double>(problem.sink_logits[static_cast<std::size_t>(head)]));
    }
    lse = std::log(sum);
    for (std::size_t s = 0; s < share.size(); ++s) {
      if (share[s] == 0) continue;
      share[s] /= sum;
      for (std::size_t i = 0; i < o.size(); ++i)
        o[i] += share[s] * value(problem, s, token, head, i);
    }
  }

  template <class Problem>
  static double value(
      const Problem& problem, std::size_t s, index_t token, index_t head, std::size_t i) {
    return load_scalar(problem.states[s].o.row(token, head)[i]);
  }

  /// d_lse_s before the state's own scale.
  template <class Problem>
  double d_weight(const Problem& problem, std::size_t s, index_t token, index_t head) const {
    if (share[s] == 0) return 0;
    double sum = problem.d_lse.as_lse().at(token, head);
    for (std::size_t i = 0; i < o.size(); ++i) {
      sum += static_cast<double>(load_scalar(problem.d_o.view().row(token, head)[i])) *
             (value(problem, s, token, head, i) - o[i]);
    }
    return share[s] * sum;
  }
};

/// A merge against the formulas: o is off by one rounding and `bound`, lse by `bound`.
template <class P, class O, class Backend>
void check_merge_formulas(const Backend& backend,
                          random_source& random,
                          const merge_sizes& sizes,
                          double bound) {
  CAPTURE(sizes.states, sizes.tokens, sizes.heads, sizes.value_dim, sizes.hostile);
  using C = accumulator_t<P, O>;
  merge_problem<P, O, O> problem(random, sizes);
  problem.vary(random);
  const hostile_tensor<O> o(sizes.tokens, sizes.heads, sizes.value_dim, sizes.layout(random));
  const hostile_tensor<C> lse(sizes.tokens, sizes.heads, 1, sizes.layout(random));
  backend.merge(merge_arguments<P, O>{.states = problem.states,
                                      .o = o.view(),
                                      .lse = lse.as_lse(),
                                      .sink_logits = problem.sink_logits});
  CHECK(o.margins_untouched());
  CHECK(lse.margins_untouched());
  problem.for_each_row([&](index_t token, index_t head) {
    CAPTURE(token, head);
    const row_formula row(problem, token, head);
    const double found = lse.as_lse().at(token, head);
    if (row.lse == -infinity<double>) {
      REQUIRE(found == row.lse);
    } else {
      REQUIRE(std::abs(found - row.lse) <= bound);
    }
    for (std::size_t i = 0; i < row.o.size(); ++i) {
      const double error =
          std::abs(static_cast<double>(load_scalar(o.view().row(token, head)[i])) - row.o[i]);
      REQUIRE(error <= unit_roundoff<O>() * std::abs(row.o[i]) + bound);
    }
  });
}

/// Every gradient against the formulas. `bound` is the error of the arithmetic in units of
/// value_dim + 1 terms of size 1.
template <class P, class O, class D, class Backend>
void check_merge_backward_formulas(const Backend& backend,
                                   random_source& random,
                                   const merge_sizes& sizes,
                                   double bound) {
  CAPTURE(sizes.states, sizes.tokens, sizes.heads, sizes.value_dim, sizes.hostile);
  merge_problem<P, O, D> problem(random, sizes);
  problem.vary(random);
  const auto found = problem.differentiate(backend, random);
  const double terms = static_cast<double>(sizes.value_dim) + 1;
  std::vector<double> d_sinks(problem.sink_logits.size());
  problem.for_each_row([&](index_t token, index_t head) {
    const row_formula row(problem, token, head);
    for (std::size_t s = 0; s < problem.states.size(); ++s) {
      CAPTURE(token, head, s);
      const auto d_o = problem.d_o.view().row(token, head);
      for (index_t i = 0; i < sizes.value_dim; ++i) {
        const double exact = row.share[s] * static_cast<double>(load_scalar(d_o[i]));
        const auto value =
            static_cast<double>(load_scalar(found.d_o[s].view().row(token, head)[i]));
        const double error = std::abs(value - exact);
        REQUIRE(error <= unit_roundoff<D>() * std::abs(exact) + bound);
        if (row.share[s] == 0) REQUIRE(error == 0);
      }
      const double d_weight = row.d_weight(problem, s, token, head);
      const double d_lse = found.d_lse[s].as_lse().at(token, head);
      REQUIRE(std::abs(d_lse - problem.states[s].log_weight_scale * d_weight) <= terms * bound);
      if (row.share[s] == 0) REQUIRE(d_lse == 0);
      if (problem.states[s].row_log_weights) {
        const double d_row = found.d_row_log_weights[s].as_lse().at(token, head);
        REQUIRE(std::abs(d_row - d_weight) <= terms * bound);
      }
    }
    if (d_sinks.empty()) return;
    double delta = 0;
    for (std::size_t i = 0; i < row.o.size(); ++i) {
      delta += row.o[i] * static_cast<double>(load_scalar(problem.d_o.view().row(token, head)[i]));
    }
    const double sink = problem.sink_logits[static_cast<std::size_t>(head)];
    const double share = sink == -infinity<double> ? 0 : std::exp(sink - row.lse);
    d_sinks[static_cast<std::size_t>(head)] +=
        share * (static_cast<double>(problem.d_lse.as_lse().at(token, head)) - delta);
  });
  for (std::size_t head = 0; head < d_sinks.size(); ++head) {
    CHECK(std::abs(static_cast<double>(found.d_sink_logits[head]) - d_sinks[head]) <=
          static_cast<double>(sizes.tokens) * terms * bound);
    if (std::isinf(problem.sink_logits[head])) CHECK(found.d_sink_logits[head] == 0);
  }
}

}  // namespace blockattn_test
