// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/distill/distillation_checks.hpp>
#include <cstdint>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

template <storage_scalar Logit = float>
struct label_log_probability_arguments {
  using accumulator_type = accumulator_t<Logit>;

  logits_view<const Logit> logits;                ///< (tokens, vocabulary), finite
  std::span<const std::int32_t> labels;           ///< (tokens) token ids; negative = no label
  std::span<accumulator_type> log_probabilities;  ///< (tokens), written, natural log
};

namespace detail {

/// Sizes and addresses: all that can be said without reading an element.
template <class Logit>
void check_label_log_probability_shapes(const char* function,
                                        const label_log_probability_arguments<Logit>& arguments) {
  const index_t tokens = arguments.logits.tokens;
  check_logits(function, "logits", arguments.logits);
  check_length(function, "log_probabilities", arguments.log_probabilities.size(), tokens);
  check_length(function, "labels", arguments.labels.size(), tokens);
  check_apart(function, {{"log_probabilities", footprint_of(arguments.log_probabilities)}},
              {{"logits", footprint_of(as_rows(arguments.logits))},
               {"labels", footprint_of(arguments.labels)}});
}

template <class C>
void check_label_gaps(const char* function,
                      std::span<const C> teacher,
                      std::span<const C> student,
                      std::span<C> scores) {
  require(teacher.size() == scores.size() && student.size() == scores.size(), function, ": ",
          teacher.size(), " log-probabilities of the teacher, ", student.size(),
          " of the student, ", scores.size(), " scores");
  check_same_or_apart(function, "scores", scores, "teacher", teacher);
  check_same_or_apart(function, "scores", scores, "student", student);
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
