// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/core/overlap_checks.hpp>
#include <blockattn/core/view_checks.hpp>
#include <blockattn/distill/distillation_arguments.hpp>
#include <blockattn/distill/distillation_options.hpp>
#include <cmath>
#include <limits>

/// \file
/// What the functions of this room refuse, in sentences, before anything is written. `function` is
/// the public name in the text.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// A logits_view as rows of one head.
template <class T>
heads_view<T> as_rows(const logits_view<T>& view) noexcept {
  return {view.data, view.tokens, 1, view.vocabulary, view.token_stride, 0, view.broadcast};
}

/// Sizes are not negative, token ids fit 32 bits, and a view with elements has memory.
template <class T>
void check_logits(const char* function, const char* name, const logits_view<T>& view) {
  require(view.tokens >= 0 && view.vocabulary >= 0 &&
              view.vocabulary <= std::numeric_limits<std::int32_t>::max(),
          function, ": ", name, " is (", view.tokens, ", ", view.vocabulary,
          "), sizes must be >= 0 and token ids fit 32 bits");
  require(view.tokens == 0 || view.vocabulary > 0, function, ": ", name, " has ", view.tokens,
          " tokens over an empty vocabulary");
  require(view.data != nullptr || view.tokens == 0, function, ": ", name,
          ".data is null but its size is (", view.tokens, ", ", view.vocabulary, ")");
  check_extent(function, name, view.tokens, view.token_stride, 1, 0, view.vocabulary, sizeof(T));
  if constexpr (std::is_const_v<T>) check_input_strides(function, name, as_rows(view));
}

inline void check_length(const char* function,
                         const char* name,
                         std::size_t length,
                         index_t tokens) {
  require(static_cast<index_t>(length) == tokens, function, ": ", name, " has ", length,
          " entries for ", tokens, " tokens");
}

/// Labels are inside the vocabulary or negative.
template <class T>
void check_label_values(const char* function,
                        std::span<const std::int32_t> labels,
                        const logits_view<T>& logits) {
  for (std::size_t t = 0; t < labels.size(); ++t) {
    require(labels[t] < logits.vocabulary, function, ": labels[", t, "] is ", labels[t],
            " but the vocabulary has ", logits.vocabulary, " tokens");
  }
}

template <class C>
void check_distillation_options(const char* function, const distillation_options& options) {
  const auto normal = [](double value) {
    return value >= static_cast<double>(std::numeric_limits<C>::min()) &&
           value <= static_cast<double>(std::numeric_limits<C>::max());
  };
  require(normal(options.temperature) && normal(1 / options.temperature), function,
          ": options.temperature is ", options.temperature,
          ", must be positive and, as its inverse, a normal number of the accumulator");
  check_enumerator(function, "options.divergence", options.divergence, divergence::jensen_shannon);
  check_enumerator(function, "options.temperature_factor", options.temperature_factor,
                   temperature_factor::none);
  require(options.teacher_share > 0 && options.teacher_share < 1, function,
          ": options.teacher_share is ", options.teacher_share, ", must be in (0, 1)");
  require(options.label_weight >= 0 && options.label_weight <= 1, function,
          ": options.label_weight is ", options.label_weight, ", must be in [0, 1]");
  require(options.total_weight >= 0 && std::isfinite(options.total_weight), function,
          ": options.total_weight is ", options.total_weight, ", must be finite and >= 0");
  require(std::isfinite(options.gradient_scale), function, ": options.gradient_scale is ",
          options.gradient_scale, ", must be finite");
}

template <class C>
void check_top_k_shape(const char* function,
                       const top_k_teacher<C>& top_k,
                       index_t tokens,
                       index_t vocabulary) {
  const auto count = static_cast<index_t>(top_k.ids.size());
  require(tokens > 0 && count % tokens == 0 && count / tokens <= vocabulary, function,
          ": top_k.ids has ", count, " entries, not k <= ", vocabulary, " for each of ", tokens,
          " tokens");
  require(top_k.log_probabilities.size() == top_k.ids.size(), function,
          ": top_k.log_probabilities has ", top_k.log_probabilities.size(), " entries, ids ",
          count);
  if (!top_k.rest_mass.empty())
    check_length(function, "top_k.rest_mass", top_k.rest_mass.size(), tokens);
}

template <class C>
void check_top_k_values(const char* function,
                        const top_k_teacher<C>& top_k,
                        index_t tokens,
                        index_t vocabulary) {
  const auto count = static_cast<index_t>(top_k.ids.size());
  for (index_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const std::int32_t id = top_k.ids[at];
    const std::int32_t previous = i % (count / tokens) == 0 ? -1 : top_k.ids[at - 1];
    require(id > previous && id < vocabulary, function, ": top_k.ids[", i, "] is ", id, " after ",
            previous, ", must rise within a token and stay below the vocabulary of ", vocabulary);
    const C value = top_k.log_probabilities[at];
    require(value <= 0 && value >= std::numeric_limits<C>::lowest(), function,
            ": top_k.log_probabilities[", i, "] is ", value, ", must be finite and <= 0");
  }
  for (std::size_t t = 0; t < top_k.rest_mass.size(); ++t) {
    require(top_k.rest_mass[t] >= 0 && top_k.rest_mass[t] <= 1, function, ": top_k.rest_mass[", t,
            "] is ", top_k.rest_mass[t], ", must be in [0, 1]");
  }
}

/// Calls visit(name, view) for everything that a call reads and writes.
template <class Teacher, class Student, class Gradient, class Visit>
void visit_memory(const distillation_arguments<Teacher, Student, Gradient>& a, const Visit& visit) {
  visit("d_student", as_rows(a.d_student));
  visit("token_losses", a.token_losses);
  visit("student", as_rows(a.student));
  visit("teacher", as_rows(a.teacher));
  visit("top_k.ids", a.top_k.ids);
  visit("top_k.log_probabilities", a.top_k.log_probabilities);
  visit("top_k.rest_mass", a.top_k.rest_mass);
  visit("weights", a.weights);
  visit("ignored", a.ignored);
  visit("labels", a.labels);
}

/// Options, sizes and addresses: all that can be said without reading an element, wherever the
/// memory is.
template <class Teacher, class Student, class Gradient>
void check_distillation_shapes(const char* function,
                               const distillation_arguments<Teacher, Student, Gradient>& arguments,
                               const distillation_options& options) {
  using C = accumulator_t<Teacher, Student, Gradient>;
  const auto& [teacher, top_k, student, weights, ignored, labels, d_student, token_losses] =
      arguments;
  check_distillation_options<C>(function, options);
  check_logits(function, "student", student);
  const index_t tokens = student.tokens;
  const index_t vocabulary = student.vocabulary;
  const auto check_shape = [&](const char* name, const auto& view) {
    check_logits(function, name, view);
    require(view.tokens == tokens && view.vocabulary == vocabulary, function, ": ", name, " is (",
            view.tokens, ", ", view.vocabulary, ") but student is (", tokens, ", ", vocabulary,
            ")");
  };
  require(!teacher || top_k.ids.empty(), function, ": teacher and top_k are both given");
  require(teacher || !top_k.ids.empty() || options.label_weight == 1 || tokens == 0, function,
          ": neither teacher nor top_k is given, and options.label_weight is ",
          options.label_weight);
  if (teacher) check_shape("teacher", teacher);
  if (!top_k.ids.empty()) check_top_k_shape(function, top_k, tokens, vocabulary);
  if (!weights.empty()) check_length(function, "weights", weights.size(), tokens);
  if (!ignored.empty()) check_length(function, "ignored", ignored.size(), tokens);
  if (!labels.empty() || options.label_weight > 0)
    check_length(function, "labels", labels.size(), tokens);
  if (!token_losses.empty()) check_length(function, "token_losses", token_losses.size(), tokens);
  const named_memory losses = {"token_losses", footprint_of(token_losses)};
  const named_memory gradient = {"d_student", footprint_of(as_rows(d_student))};
  if (d_student) check_shape("d_student", d_student);
  require(
      !d_student || rows_are_disjoint(tokens, 1, d_student.vocabulary, d_student.token_stride, 0),
      function, ": rows of d_student overlap: vocabulary ", d_student.vocabulary, ", token_stride ",
      d_student.token_stride);
  check_apart(function, {gradient, losses},
              {{"teacher", footprint_of(as_rows(teacher))},
               {"top_k.ids", footprint_of(top_k.ids)},
               {"top_k.log_probabilities", footprint_of(top_k.log_probabilities)},
               {"top_k.rest_mass", footprint_of(top_k.rest_mass)},
               {"weights", footprint_of(weights)},
               {"ignored", footprint_of(ignored)},
               {"labels", footprint_of(labels)}});
  check_apart(function, losses, {"student", footprint_of(as_rows(student))});
  check_same_or_apart(function, "d_student", as_rows(d_student), "student", as_rows(student));
}

/// Everything that a distillation loss refuses.
template <class Teacher, class Student, class Gradient>
void check_distillation(const char* function,
                        const distillation_arguments<Teacher, Student, Gradient>& arguments,
                        const distillation_options& options) {
  using C = accumulator_t<Teacher, Student, Gradient>;
  check_distillation_shapes(function, arguments, options);
  const auto& student = arguments.student;
  check_top_k_values(function, arguments.top_k, student.tokens, student.vocabulary);
  for (std::size_t t = 0; t < arguments.weights.size(); ++t) {
    if (!arguments.ignored.empty() && arguments.ignored[t] != 0) continue;
    const C weight = arguments.weights[t];
    require(weight >= 0 && weight <= std::numeric_limits<C>::max(), function, ": weights[", t,
            "] is ", weight, ", must be finite and >= 0");
  }
  check_label_values(function, arguments.labels, student);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
