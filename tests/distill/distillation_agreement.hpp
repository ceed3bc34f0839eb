// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include "distill/distillation_case.hpp"
#include "distill/distillation_error_bound.hpp"
#include "support/catch.hpp"

/// \file
/// What every backend's distillation loss must do. A backend has
///   double distillation_loss(arguments, options) const, and
///   static summation_rounding rounding<C>(vocabulary), C the accumulator.

namespace blockattn_test {

/// Runs the call; everything that it says is within the rounding that its storage explains.
template <class Backend, class Teacher, class Student, class Gradient>
void check_against_reference(const Backend& backend,
                             distillation_case<Teacher, Student, Gradient>& test) {
  using C = accumulator_t<Teacher, Student, Gradient>;
  distillation_oracle oracle(test);
  const double loss = backend.distillation_loss(test.arguments(), test.options);
  double loss_bound = 0;
  double weights = 0;
  for (index_t token = 0; token < test.shape.tokens; ++token) {
    const auto t = static_cast<std::size_t>(token);
    CAPTURE(token);
    if (!test.counts(token)) {
      CHECK(test.token_losses[t] == 0);
      for (index_t v = 0; v < test.shape.vocabulary; ++v) REQUIRE(test.gradient_at(token, v) == 0);
      continue;
    }
    const distillation_error_bound bound(test, oracle, token,
                                         Backend::template rounding<C>(test.shape.vocabulary));
    const auto found = static_cast<double>(test.token_losses[t]);
    CHECK(std::abs(found - oracle.token_losses[t]) <= bound.loss());
    const auto weight = static_cast<double>(test.weights[t]);
    loss_bound += weight * bound.loss();
    weights += weight;
    for (index_t v = 0; v < test.shape.vocabulary; ++v) {
      const double exact = oracle.gradient[t * static_cast<std::size_t>(test.shape.vocabulary) +
                                           static_cast<std::size_t>(v)];
      const double error = std::abs(test.gradient_at(token, v) - exact);
      if (!(error <= bound.gradient(v))) {
        CAPTURE(v, exact, test.gradient_at(token, v), bound.gradient(v));
        REQUIRE(error <= bound.gradient(v));
      }
    }
  }
  const double total = test.options.total_weight;
  const double divisor = total > 0 ? total : std::max(weights, 1e-300);
  CHECK(std::abs(loss - oracle.loss) <= loss_bound / divisor + 1e-15 * oracle.loss);
  CHECK(test.gradient.margins_untouched());
}

/// Every option over each vocabulary, with full and top-k teachers; rows are aligned or not.
template <class Teacher, class Student, class Gradient, class Backend>
void check_random_calls(const Backend& backend,
                        std::uint64_t default_seed,
                        const std::vector<index_t>& vocabularies,
                        bool aligned = false) {
  const std::uint64_t seed = test_seed(default_seed);
  random_source random(seed);
  for (const distillation_options& options : all_distillation_options()) {
    for (const index_t vocabulary : vocabularies) {
      for (const bool top_k : {false, true}) {
        const index_t k = top_k ? random.integer(1, std::min<index_t>(vocabulary, 60)) : 0;
        const distillation_shape shape{.tokens = random.integer(1, 3),
                                       .vocabulary = vocabulary,
                                       .k = k,
                                       .magnitude = random.chance(0.2) ? 40.0 : 3.0,
                                       .student_noise = random.real(0, 1),
                                       .aligned = aligned};
        distillation_options scaled = options;
        // Lets 16-bit gradients of small probabilities be numbers.
        if (format_of<Gradient> == storage_format::fp16) scaled.gradient_scale *= 8;
        CAPTURE(seed, vocabulary, k, shape.tokens, shape.magnitude, shape.student_noise,
                static_cast<int>(options.divergence), options.temperature, options.label_weight,
                options.gradient_scale);
        distillation_case<Teacher, Student, Gradient> test(random, shape, scaled);
        check_against_reference(backend, test);
      }
    }
  }
}

template <class T, class Backend>
void check_large_logits(const Backend& backend, std::uint64_t default_seed) {
  const std::uint64_t seed = test_seed(default_seed);
  random_source random(seed);
  for (const distillation_options& options : all_distillation_options()) {
    for (const index_t k : {0, 5}) {
      CAPTURE(seed, k, static_cast<int>(options.divergence), options.temperature);
      distillation_case<T> test(
          random, {.tokens = 2, .vocabulary = 1500, .k = k, .magnitude = 0, .plain = true},
          options);
      for (index_t token = 0; token < 2; ++token) {
        for (index_t v = 0; v < 1500; ++v) {
          store_scalar(test.teacher.view().row(token, 0)[v], random.chance(0.5) ? 1e4 : -1e4);
          store_scalar(test.student.view().row(token, 0)[v], random.chance(0.01) ? 1e4 : -1e4);
        }
      }
      check_against_reference(backend, test);
    }
  }
}

template <class T, class Backend>
void check_identical_logits(const Backend& backend, std::uint64_t default_seed) {
  random_source random(test_seed(default_seed));
  for (const divergence kind : all_divergences) {
    for (const double temperature : {1.0, 0.3, 5.0}) {
      CAPTURE(static_cast<int>(kind), temperature);
      distillation_case<T> test(
          random, {.tokens = 3, .vocabulary = 3001, .student_noise = 0, .plain = true},
          {.divergence = kind, .teacher_share = 0.3, .temperature = temperature});
      CHECK(backend.distillation_loss(test.arguments(), test.options) == 0);
      for (index_t token = 0; token < 3; ++token) {
        for (index_t v = 0; v < 3001; ++v) REQUIRE(test.gradient_at(token, v) == 0);
      }
    }
  }
}

template <class T, class Backend>
void check_no_token_counts(const Backend& backend, std::uint64_t default_seed) {
  using C = accumulator_t<T>;
  random_source random(test_seed(default_seed));
  distillation_case<T> test(random, {.tokens = 5, .vocabulary = 90, .k = 3}, {});
  for (const bool by_weight : {false, true}) {
    std::fill(test.weights.begin(), test.weights.end(), by_weight ? C(0) : C(1));
    std::fill(test.ignored.begin(), test.ignored.end(), std::uint8_t{!by_weight});
    auto arguments = test.arguments();
    const hostile_tensor<T> unread(5, 1, 90, {});  // NaN
    arguments.student = test.logits(unread);
    CHECK(backend.distillation_loss(arguments, test.options) == 0);
    for (index_t token = 0; token < 5; ++token) {
      CHECK(test.token_losses[static_cast<std::size_t>(token)] == 0);
      for (index_t v = 0; v < 90; ++v) REQUIRE(test.gradient_at(token, v) == 0);
    }
  }
  // No tokens at all.
  CHECK(backend.distillation_loss(distillation_arguments<T>{}, distillation_options{}) == 0);
}

/// Bits of the gradient's rows, and of the token losses.
template <class Case>
std::vector<std::byte> bits_of(const Case& test) {
  std::vector<std::byte> bits;
  const auto append = [&](const auto* data, index_t count) {
    const auto bytes = std::as_bytes(std::span(data, static_cast<std::size_t>(count)));
    bits.insert(bits.end(), bytes.begin(), bytes.end());
  };
  for (index_t token = 0; token < test.shape.tokens; ++token)
    append(test.gradient.view().row(token, 0), test.shape.vocabulary);
  append(test.token_losses.data(), test.shape.tokens);
  return bits;
}

template <class T, class Backend>
void check_in_place(const Backend& backend, std::uint64_t default_seed) {
  random_source random(test_seed(default_seed));
  for (const distillation_options& options : all_distillation_options()) {
    for (const index_t k : {0, 9}) {
      CAPTURE(k, static_cast<int>(options.divergence), options.temperature, options.label_weight);
      distillation_case<T> test(random, {.tokens = 4, .vocabulary = 2077, .k = k}, options);
      const double beside = backend.distillation_loss(test.arguments(), options);
      const auto expected = bits_of(test);
      auto arguments = test.arguments();
      arguments.d_student = test.logits(test.student);
      CHECK(backend.distillation_loss(arguments, options) == beside);
      for (index_t token = 0; token < 4; ++token) {
        std::memcpy(test.gradient.view().row(token, 0), test.student.view().row(token, 0),
                    2077 * sizeof(T));
      }
      CHECK(bits_of(test) == expected);
      CHECK(test.student.margins_untouched());
    }
  }
}

/// Rows do not depend on one another.
template <class T, class Backend>
void check_rows_alone(const Backend& backend, std::uint64_t default_seed) {
  random_source random(test_seed(default_seed));
  distillation_case<T> test(random, {.tokens = 8, .vocabulary = 1500, .plain = true},
                            {.total_weight = 8});
  backend.distillation_loss(test.arguments(), test.options);
  const auto together = bits_of(test);
  for (index_t token = 0; token < 8; ++token) {
    const auto slice = [token](auto view) {
      view.data = view.row(token);
      view.tokens = 1;
      return view;
    };
    auto alone = test.arguments();
    const auto t = static_cast<std::size_t>(token);
    backend.distillation_loss(
        distillation_arguments<T>{.teacher = slice(alone.teacher),
                                  .student = slice(alone.student),
                                  .d_student = slice(alone.d_student),
                                  .token_losses = alone.token_losses.subspan(t, 1)},
        test.options);
  }
  CHECK(bits_of(test) == together);
}

}  // namespace blockattn_test
