// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

#include "distill/distillation_case.hpp"
#include "support/unit_roundoff.hpp"

namespace blockattn_test {

/// How a backend rounds where it sums the terms of a row, in units of the accumulator's roundoff.
struct summation_rounding {
  double exponential = 3;  ///< of 2^x
  double additions = 0;    ///< how many one term goes through, in the accumulator
};

/// What rounding can do to one token's loss and gradient, to first order in the unit roundoff u of
/// the accumulator. With x_v the exponent of 2 of a probability relative to its row's largest:
/// - x_v carries two roundings and that of the scale, and relative to a running reference no more:
///   3 u |x_v|. 2^x is good to `exponential` u; a sum adds `additions` u; products and factors up
///   to 5 u. So a probability is wrong by delta_v = u (3 |x_v| + exponential + additions + 5)
///   before it is normalised, and its row's log-sum by A = the mean of delta under the same
///   distribution.
/// - Everything else depends on log p and log q with derivatives of at most 1 each. With B the
/// error
///   of the divergence, s the log-ratio of an outcome and m = |D|:
///     B = sum_o (p_o + q_o) (delta_o + A) (2 + |s_o|)
///     |error of q_o (s_o - D)| <= (p_o + q_o (3 + |s_o| + m)) (delta_o + A) + q_o B
///   and inside an outcome a token's share of it adds delta_v + delta_o.
/// - Exponentials below the smallest normal number are 0.
class distillation_error_bound {
 public:
  template <class Teacher, class Student, class Gradient>
  distillation_error_bound(const distillation_case<Teacher, Student, Gradient>& test,
                           const distillation_oracle& oracle,
                           index_t token,
                           const summation_rounding& rounding) {
    using C = accumulator_t<Teacher, Student, Gradient>;
    constexpr double u = unit_roundoff<C>();
    const distillation_options& options = test.options;
    const auto vocabulary = static_cast<std::size_t>(test.shape.vocabulary);
    const auto t = static_cast<std::size_t>(token);
    const double temperature = options.temperature;
    constexpr auto underflow = static_cast<double>(std::numeric_limits<C>::min());
    const auto softmax = [&](const std::vector<double>& logits, double at_temperature) {
      const auto row = logits.begin() + token * test.shape.vocabulary;
      const double largest = *std::max_element(row, row + test.shape.vocabulary);
      distribution result;
      double sum = 0;
      for (std::size_t v = 0; v < vocabulary; ++v) {
        result.log.push_back((row[static_cast<index_t>(v)] - largest) / at_temperature);
        result.delta.push_back(u * (3 * std::abs(result.log.back()) / std::log(2.0) +
                                    rounding.exponential + rounding.additions + 5));
        sum += std::exp(result.log.back());
      }
      for (std::size_t v = 0; v < vocabulary; ++v) {
        result.log[v] -= std::log(sum);
        result.mean_delta += std::exp(result.log[v]) * result.delta[v];
      }
      return result;
    };

    const double factor =
        options.temperature_factor == temperature_factor::squared ? temperature * temperature : 1;
    const double share = options.label_weight;
    gradient_.assign(vocabulary, 0);
    if (share < 1) {
      // Outcomes: the tokens, or those of a top-k teacher and the rest.
      const distribution student = softmax(oracle.student, temperature);
      distribution teacher, outcome;
      std::vector<std::size_t> outcome_of(vocabulary);
      if (test.shape.k == 0) {
        teacher = softmax(oracle.teacher, temperature);
        outcome = student;
        std::iota(outcome_of.begin(), outcome_of.end(), std::size_t{0});
        for (std::size_t v = 0; v < vocabulary; ++v)
          outcome.delta[v] = std::max(outcome.delta[v], teacher.delta[v]);
        outcome.mean_delta += teacher.mean_delta;
      } else {
        const auto k = static_cast<std::size_t>(test.shape.k);
        std::fill(outcome_of.begin(), outcome_of.end(), k);
        for (std::size_t j = 0; j < k; ++j) {
          const auto id = static_cast<std::size_t>(test.ids[t * k + j]);
          outcome_of[id] = j;
          teacher.log.push_back(static_cast<double>(test.log_probabilities[t * k + j]));
          outcome.log.push_back(student.log[id]);
          outcome.delta.push_back(student.delta[id]);
        }
        double most = -std::numeric_limits<double>::infinity();
        for (std::size_t v = 0; v < vocabulary; ++v) {
          if (outcome_of[v] == k) most = std::max(most, student.log[v]);
        }
        double rest = 0, delta = 0;
        for (std::size_t v = 0; v < vocabulary; ++v) {
          if (outcome_of[v] != k) continue;
          rest += std::exp(student.log[v] - most);
          delta += std::exp(student.log[v] - most) * student.delta[v];
        }
        if (rest > 0) {
          teacher.log.push_back(std::log(
              static_cast<double>(std::max(test.rest_mass[t], std::numeric_limits<C>::min()))));
          outcome.log.push_back(most + std::log(rest));
          outcome.delta.push_back(delta / rest);
        }
        outcome.mean_delta = student.mean_delta;
      }
      double divergence_error = 0;
      double size = 0;
      for (std::size_t o = 0; o < outcome.log.size(); ++o) {
        const double p = std::exp(teacher.log[o]);
        const double q = std::exp(outcome.log[o]);
        const double ratio = std::abs(teacher.log[o] - outcome.log[o]);
        divergence_error += (p + q) * (outcome.delta[o] + outcome.mean_delta) * (2 + ratio);
        size += (p + q) * ratio;
      }
      loss_ += (1 - share) * factor * divergence_error;
      for (std::size_t v = 0; v < vocabulary; ++v) {
        const std::size_t o = outcome_of[v];
        const double p = std::exp(teacher.log[o]);
        const double q = std::exp(outcome.log[o]);
        const double ratio = std::abs(teacher.log[o] - outcome.log[o]);
        const double of_outcome =
            (p + q * (3 + ratio + size)) *
                (2 * outcome.delta[o] + outcome.mean_delta + student.delta[v]) +
            q * divergence_error;
        gradient_[v] += (1 - share) * factor / temperature *
                        (std::exp(student.log[v] - outcome.log[o]) * of_outcome +
                         underflow * (3 + ratio + size));
      }
    }
    const std::int32_t label = test.labels[t];
    if (share > 0 && label >= 0) {
      const distribution student = softmax(oracle.student, 1);
      const auto at = static_cast<std::size_t>(label);
      loss_ += share * (student.delta[at] + student.mean_delta + u * std::abs(student.log[at]));
      for (std::size_t v = 0; v < vocabulary; ++v) {
        gradient_[v] +=
            share * (std::exp(student.log[v]) * (student.delta[v] + student.mean_delta) +
                     underflow + (v == at ? 2 * u : 0.0));
      }
    }
    loss_ += unit_roundoff<C>() * oracle.token_losses[t];

    // Scaled as the gradient is and rounded once more, to half the last digit where it underflows.
    double total = options.total_weight;
    for (index_t i = 0; total == 0 && i < test.shape.tokens; ++i) sum_ += weight_of(test, i);
    total = total == 0 ? sum_ : total;
    const double scale = std::abs(options.gradient_scale) * weight_of(test, token) / total;
    constexpr double storage = unit_roundoff<Gradient>();
    constexpr double last_digit = format_of<Gradient> == storage_format::fp16   ? 0x1p-25
                                  : format_of<Gradient> == storage_format::bf16 ? 0x1p-134
                                  : format_of<Gradient> == storage_format::fp32 ? 0x1p-150
                                                                                : 0;
    for (std::size_t v = 0; v < vocabulary; ++v) {
      const double exact = std::abs(oracle.gradient[t * vocabulary + v]);
      gradient_[v] = scale * gradient_[v] + (storage + 2 * u) * exact + last_digit;
    }
  }

  double loss() const noexcept { return loss_; }
  double gradient(index_t v) const noexcept { return gradient_[static_cast<std::size_t>(v)]; }

 private:
  struct distribution {
    std::vector<double> log;    ///< natural log of the probabilities
    std::vector<double> delta;  ///< of each, before they are normalised
    double mean_delta = 0;
  };

  template <class Case>
  static double weight_of(const Case& test, index_t token) {
    return test.counts(token) ? static_cast<double>(test.weights[static_cast<std::size_t>(token)])
                              : 0;
  }

  double loss_ = 0;
  double sum_ = 0;
  std::vector<double> gradient_;
};

}  // namespace blockattn_test
