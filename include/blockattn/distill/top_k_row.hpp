// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/distill/distillation_arguments.hpp>
#include <blockattn/distill/distillation_options.hpp>
#include <blockattn/distill/logits_row.hpp>

/// \file
/// A row whose teacher is known by its k most likely tokens. Outcomes: those tokens, and the rest.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// One token's teacher, with the student's logits of the same k ids: gathered before the student's
/// row is overwritten.
template <class C, class Arch>
struct top_k_row {
  std::span<const std::int32_t> ids;  ///< (k) rising
  std::span<const C> teacher_logs;    ///< (k) natural log
  double log_rest_mass = 0;           ///< natural log; of the teacher
  std::span<C> student_logits;        ///< (k)
  std::span<double> gradients;        ///< (k) of the scaled logits
};

/// The natural log of what the teacher's rest weighs (see top_k_teacher::rest_mass).
template <class C, class Arch>
double log_rest_mass(const top_k_teacher<C>& top_k, index_t token, index_t k) noexcept {
  if (!top_k.rest_mass.empty()) {
    const C mass = top_k.rest_mass[static_cast<std::size_t>(token)];
    return std::log(static_cast<double>(std::max(mass, std::numeric_limits<C>::min())));
  }
  double rest = 1;
  for (index_t j = token * k; j < (token + 1) * k; ++j)
    rest -= std::exp(static_cast<double>(top_k.log_probabilities[static_cast<std::size_t>(j)]));
  return std::log(std::max(rest, static_cast<double>(std::numeric_limits<C>::epsilon())));
}

/// The sum over the tokens of one row that are not among the rising `ids`: never 1 minus the
/// others. `store` keeps the terms, 0 at the ids.
template <class C, class Arch, class T>
row_sum<C, Arch> sum_rest(const T* row,
                          index_t vocabulary,
                          std::span<const std::int32_t> ids,
                          C scale,
                          const stored_terms<C, Arch>& store) noexcept {
  alignas(64) C values[logits_chunk];
  row_sum<C, Arch> sum;
  auto id = ids.begin();
  for (index_t begin = 0; begin < vocabulary; begin += logits_chunk) {
    const index_t count = std::min(logits_chunk, vocabulary - begin);
    for_each_vector<C, Arch>(count, [&](index_t i, index_t n) {
      prefetch_next_chunk(row + begin + i);
      if (n == lanes<C, Arch>) {
        load_values<C, Arch>(row + begin + i).store_aligned(values + i);
      } else {
        for (index_t l = i; l < i + n; ++l) values[l] = static_cast<C>(load_scalar(row[begin + l]));
      }
    });
    for (; id != ids.end() && *id < begin + count; ++id)
      values[*id - begin] = -std::numeric_limits<C>::infinity();
    add_chunk<C, Arch>(values, count, scale, sum, store.from(begin));
  }
  return sum;
}

/// log2 of the student's probability of the outcomes.
template <class C, class Arch>
struct student_outcomes {
  row_sum<C, Arch> all;   ///< over the whole vocabulary
  row_sum<C, Arch> rest;  ///< over the tokens that are not among the ids

  student_outcomes(const row_sum<C, Arch>& rest_sum, std::span<const C> logits, C scale) noexcept
      : all(rest_sum), rest(rest_sum) {
    for (const C logit : logits) {
      all.raise_reference(logit, scale);
      all.total += std::exp2(all.exponent(logit, all.reference, scale));
    }
  }
  double log2_rest(C scale) const noexcept {
    return std::log2(rest.total) + all.log2_probability(rest.reference, scale);
  }
};

/// The divergence in nats over k + 1 outcomes (k where nothing is left for the rest), and its
/// gradient by the student's scaled logits: `row.gradients` for the ids; the sum over the rest,
/// which is shared out in proportion to the probabilities, is returned.
struct top_k_result {
  double divergence = 0;
  double rest_gradient = 0;
};

template <class C, class Arch>
top_k_result top_k_divergence(const top_k_row<C, Arch>& row,
                              const student_outcomes<C, Arch>& student,
                              C scale,
                              const distillation_options& options) noexcept {
  const double b = options.teacher_share;
  const bool has_rest = student.rest.total > 0;
  const auto k = row.ids.size();
  // Sums over the outcomes: of p, of q, of the divergence, and of q s, where s is the derivative of
  // the divergence by q, up to a constant.
  double teacher_mass = 0;
  double divergence = 0;
  double mean_slope = 0;
  const auto slope_of = [&](double log_p, double log_q, double log_m) {
    return options.divergence == blockattn::divergence::reverse_kl ? log_q - log_p
                                                                   : (1 - b) * (log_q - log_m);
  };
  const auto log_mixture = [b](double log_p, double log_q) {
    const double most = std::max(log_p, log_q);
    return most + std::log(b * std::exp(log_p - most) + (1 - b) * std::exp(log_q - most));
  };
  const auto outcome = [&](std::size_t j, auto&& visit) {
    const double log_p = j < k ? static_cast<double>(row.teacher_logs[j]) : row.log_rest_mass;
    const double log_q =
        std::numbers::ln2 * (j < k ? student.all.log2_probability(row.student_logits[j], scale)
                                   : student.log2_rest(scale));
    visit(log_p, log_q, log_mixture(log_p, log_q));
  };
  for (std::size_t j = 0; j < k + (has_rest ? 1 : 0); ++j) {
    outcome(j, [&](double log_p, double log_q, double log_m) {
      const double p = std::exp(log_p);
      const double q = std::exp(log_q);
      teacher_mass += p;
      switch (options.divergence) {
        case blockattn::divergence::forward_kl:
          divergence += p * (log_p - log_q);
          return;
        case blockattn::divergence::reverse_kl:
          divergence += q * (log_q - log_p);
          break;
        case blockattn::divergence::jensen_shannon:
          divergence += b * p * (log_p - log_m) + (1 - b) * q * (log_q - log_m);
          break;
      }
      mean_slope += q * slope_of(log_p, log_q, log_m);
    });
  }
  top_k_result result{.divergence = divergence};
  for (std::size_t j = 0; j < k + (has_rest ? 1 : 0); ++j) {
    outcome(j, [&](double log_p, double log_q, double log_m) {
      const double gradient = options.divergence == blockattn::divergence::forward_kl
                                  ? teacher_mass * std::exp(log_q) - std::exp(log_p)
                                  : std::exp(log_q) * (slope_of(log_p, log_q, log_m) - mean_slope);
      (j < k ? row.gradients[j] : result.rest_gradient) = gradient;
    });
  }
  return result;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
