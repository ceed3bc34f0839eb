// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/executor.hpp>
#include <blockattn/distill/label_log_probability_arguments.hpp>
#include <blockattn/distill/logits_row.hpp>
#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI {

/// What a model says of the true tokens: log softmax(logits_t)[label_t]; 0 for a token without a
/// label, whose row is not read. Throws `error` on lengths that disagree and labels outside the
/// vocabulary. Reads each row once; same bits for every executor; allocates nothing.
template <class Logit = float, class Arch = default_arch, class Executor = serial_executor>
requires executor<std::remove_reference_t<Executor>>
void label_log_probabilities(const label_log_probability_arguments<Logit>& arguments,
                             Executor&& workers = Executor{}) {
  detail::check_label_log_probability_shapes("label_log_probabilities", arguments);
  detail::check_label_values("label_log_probabilities", arguments.labels, arguments.logits);
  using C = accumulator_t<Logit>;
  workers.parallel_for(arguments.logits.tokens, [&arguments](index_t token, index_t) noexcept {
    const auto t = static_cast<std::size_t>(token);
    arguments.log_probabilities[t] =
        arguments.labels[t] < 0
            ? C(0)
            : static_cast<C>(-detail::cross_entropy<C, Arch>(
                  arguments.logits.row(token), arguments.logits.vocabulary, arguments.labels[t]));
  });
}

/// Scores of tokens by what block attention does to the true token: |teacher_t - student_t| of the
/// log-probabilities that full and block attention give it. All spans have one length, `scores` may
/// be an input. Throws `error` when lengths disagree.
template <class C = float>
void label_gaps(std::type_identity_t<std::span<const C>> teacher,
                std::type_identity_t<std::span<const C>> student,
                std::type_identity_t<std::span<C>> scores) {
  detail::check_label_gaps<C>("label_gaps", teacher, student, scores);
  for (std::size_t t = 0; t < scores.size(); ++t) scores[t] = std::abs(teacher[t] - student[t]);
}

}  // namespace blockattn::inline BLOCKATTN_ABI
