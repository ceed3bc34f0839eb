// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/distill/distillation_checks.hpp>
#include <cmath>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::reference {

/// The definition of distillation_loss and its oracle. A token's outcomes are the tokens of the
/// vocabulary, or those of a top-k teacher and the rest; p and q are what teacher and student give
/// them at temperature T, and with D(p, q) as in distillation_options
///   dD/d(student_v / T) = q_v (s_o - sum_o q_o s_o), o the outcome of v,
///   s = -p / q (forward), log(q / p) (reverse), (1 - b) log(q / m) (Jensen-Shannon).
/// Arithmetic is fp64, or long double for double tensors. O(tokens * vocabulary); allocates rows.
/// Throws what distillation_loss throws.
template <class Teacher = float, class Student = Teacher, class Gradient = Student>
double distillation_loss(const distillation_arguments<Teacher, Student, Gradient>& arguments,
                         const distillation_options& options = {}) {
  const auto& [teacher, top_k, student, weights, ignored, labels, d_student, token_losses] =
      arguments;
  blockattn::detail::check_distillation("reference::distillation_loss", arguments, options);
  using C = accumulator_t<Teacher, Student, Gradient>;
  using real = std::conditional_t<std::is_same_v<C, double>, long double, double>;
  const auto tokens = static_cast<std::size_t>(student.tokens);
  const auto vocabulary = static_cast<std::size_t>(student.vocabulary);
  const std::size_t k = tokens > 0 ? top_k.ids.size() / tokens : 0;
  const auto temperature = static_cast<real>(options.temperature);
  const auto b = static_cast<real>(options.teacher_share);
  const auto share = static_cast<real>(options.label_weight);
  const real factor = options.temperature_factor == temperature_factor::squared
                          ? temperature * temperature
                          : real(1);

  // The natural logs of softmax(logits / T).
  const auto log_softmax = [vocabulary](const auto* row, real t) {
    std::vector<real> logs(vocabulary);
    for (std::size_t v = 0; v < vocabulary; ++v)
      logs[v] = static_cast<real>(load_scalar(row[v])) / t;
    const real largest = *std::max_element(logs.begin(), logs.end());
    real sum = 0;
    for (const real log : logs) sum += std::exp(log - largest);
    for (real& log : logs) log -= largest + std::log(sum);
    return logs;
  };
  std::vector<real> weight(tokens, real(1));
  real total_weight = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    if (!weights.empty()) weight[t] = static_cast<real>(weights[t]);
    if (!ignored.empty() && ignored[t] != 0) weight[t] = 0;
    total_weight += weight[t];
  }
  if (options.total_weight > 0) total_weight = static_cast<real>(options.total_weight);

  real loss = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    const auto token = static_cast<index_t>(t);
    std::vector<real> gradient(vocabulary, real(0));
    real token_loss = 0;
    if (weight[t] > 0 && share < 1) {
      const std::vector<real> student_logs = log_softmax(student.row(token), temperature);
      std::vector<std::size_t> outcome_of(vocabulary, k);  // the rest comes last
      std::vector<real> log_p;
      if (teacher) {
        log_p = log_softmax(teacher.row(token), temperature);
        for (std::size_t v = 0; v < vocabulary; ++v) outcome_of[v] = v;
      } else {
        real rest = 1;
        for (std::size_t j = t * k; j < (t + 1) * k; ++j) {
          outcome_of[static_cast<std::size_t>(top_k.ids[j])] = j - t * k;
          log_p.push_back(static_cast<real>(top_k.log_probabilities[j]));
          rest -= std::exp(log_p.back());
        }
        rest = std::max(rest, static_cast<real>(std::numeric_limits<C>::epsilon()));
        if (!top_k.rest_mass.empty())
          rest = static_cast<real>(std::max(top_k.rest_mass[t], std::numeric_limits<C>::min()));
        if (k < vocabulary) log_p.push_back(std::log(rest));
      }
      // log q of the outcomes: what belongs to one is added up relative to its largest.
      const std::size_t outcomes = log_p.size();
      std::vector<real> largest(outcomes, -std::numeric_limits<real>::infinity());
      std::vector<real> log_q(outcomes, real(0));
      for (std::size_t v = 0; v < vocabulary; ++v)
        largest[outcome_of[v]] = std::max(largest[outcome_of[v]], student_logs[v]);
      for (std::size_t v = 0; v < vocabulary; ++v)
        log_q[outcome_of[v]] += std::exp(student_logs[v] - largest[outcome_of[v]]);
      for (std::size_t o = 0; o < outcomes; ++o) log_q[o] = largest[o] + std::log(log_q[o]);

      std::vector<real> q_slope(outcomes);  // q s: s alone may be infinite where q is 0
      real divergence_t = 0;
      real mean_slope = 0;
      for (std::size_t o = 0; o < outcomes; ++o) {
        const real p = std::exp(log_p[o]);
        const real q = std::exp(log_q[o]);
        const real most = std::max(log_p[o], log_q[o]);
        const real log_m =
            most + std::log(b * std::exp(log_p[o] - most) + (1 - b) * std::exp(log_q[o] - most));
        switch (options.divergence) {
          case divergence::forward_kl:
            divergence_t += p * (log_p[o] - log_q[o]);
            q_slope[o] = -p;
            break;
          case divergence::reverse_kl:
            divergence_t += q * (log_q[o] - log_p[o]);
            q_slope[o] = q * (log_q[o] - log_p[o]);
            break;
          case divergence::jensen_shannon:
            divergence_t += b * p * (log_p[o] - log_m) + (1 - b) * q * (log_q[o] - log_m);
            q_slope[o] = (1 - b) * q * (log_q[o] - log_m);
            break;
        }
        mean_slope += q_slope[o];
      }
      for (std::size_t v = 0; v < vocabulary; ++v) {
        const std::size_t o = outcome_of[v];
        const real within = std::exp(student_logs[v] - log_q[o]);  // q_v / q_o
        gradient[v] = (1 - share) * factor / temperature *
                      (within * q_slope[o] - std::exp(student_logs[v]) * mean_slope);
      }
      token_loss = (1 - share) * factor * divergence_t;
    }
    if (weight[t] > 0 && share > 0 && labels[t] >= 0) {
      const auto label = static_cast<std::size_t>(labels[t]);
      const std::vector<real> logs = log_softmax(student.row(token), real(1));
      token_loss -= share * logs[label];
      for (std::size_t v = 0; v < vocabulary; ++v)
        gradient[v] += share * (std::exp(logs[v]) - (v == label ? real(1) : real(0)));
    }
    const real counted = weight[t] > 0 ? weight[t] / total_weight : real(0);
    loss += counted * token_loss;
    if (!token_losses.empty()) token_losses[t] = static_cast<C>(token_loss);
    for (std::size_t v = 0; d_student && v < vocabulary; ++v) {
      const real scaled = static_cast<real>(options.gradient_scale) * counted * gradient[v];
      store_scalar(d_student.row(token)[v], static_cast<C>(scaled));
    }
  }
  return static_cast<double>(loss);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::reference
