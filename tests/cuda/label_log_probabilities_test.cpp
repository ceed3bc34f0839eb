// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/label_log_probabilities.hpp>

#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_distill.hpp"
#include "support/contains.hpp"
#include "support/unit_roundoff.hpp"

using namespace blockattn_test;

TEMPLATE_TEST_CASE(
    "cuda::label_log_probabilities is log softmax at the label", "", float, bfloat16, float16) {
  if (skips_without_device()) return;
  using T = TestType;
  const std::uint64_t seed = test_seed(430);
  random_source random(seed);
  for (const index_t vocabulary : {1, 7, 8, 9, 1023, 1024, 1025, 4097, 50257}) {
    for (const double magnitude : {3.0, 5000.0}) {
      CAPTURE(seed, vocabulary, magnitude);
      distillation_case<T> test(random,
                                {.tokens = 7,
                                 .vocabulary = vocabulary,
                                 .magnitude = magnitude,
                                 .plain = true,
                                 .aligned = random.chance(0.5)},
                                {.label_weight = 1});
      for (index_t token = 0; token < 7; ++token) {  // what has no label is not read
        T* const row = test.student.view().row(token, 0);
        if (test.labels[static_cast<std::size_t>(token)] < 0)
          std::memset(static_cast<void*>(row), 0xff,
                      static_cast<std::size_t>(vocabulary) * sizeof(T));
      }
      std::vector<float> found(7, -1.0F);
      device_label_log_probabilities<T>(
          {.logits = test.logits(test.student), .labels = test.labels, .log_probabilities = found});
      const summation_rounding rounding = cuda_distillation::rounding<float>(vocabulary);
      for (std::size_t t = 0; t < 7; ++t) {
        if (test.labels[t] < 0) {
          CHECK(found[t] == 0);
          continue;
        }
        const T* const row = test.student.view().row(static_cast<index_t>(t), 0);
        const auto at = [&](index_t v) { return static_cast<double>(load_scalar(row[v])); };
        double largest = at(0);
        for (index_t v = 1; v < vocabulary; ++v) largest = std::max(largest, at(v));
        double sum = 0;
        for (index_t v = 0; v < vocabulary; ++v) sum += std::exp(at(v) - largest);
        const double exact = at(test.labels[t]) - largest - std::log(sum);
        // The result is rounded. Each exponential carries 3 u times its exponent, at most 1 / e of
        // itself, and its own error; then come the additions.
        const double bound =
            unit_roundoff<float>() * (std::abs(exact) + 3 * static_cast<double>(vocabulary) / sum +
                                      rounding.exponential + rounding.additions);
        CHECK(std::abs(static_cast<double>(found[t]) - exact) <= bound);
      }

      // Minus the loss of the labels alone, bit for bit.
      cuda_distillation{}.distillation_loss(test.arguments(), test.options);
      for (std::size_t t = 0; t < 7; ++t) CHECK(found[t] == -test.token_losses[t]);
    }
  }
}

TEST_CASE("cuda::label_log_probabilities: a label outside the vocabulary gives NaN") {
  if (skips_without_device()) return;
  const std::vector<float> logits(20);
  const std::vector<std::int32_t> labels = {10, 9};
  std::vector<float> found(2);
  device_label_log_probabilities<float>(
      {.logits = dense_logits(logits.data(), 2, 10), .labels = labels, .log_probabilities = found});
  CHECK(std::isnan(found[0]));
  CHECK(found[1] == Approx(-std::log(10.0)).epsilon(1e-6));
  device_label_log_probabilities<float>({});  // no tokens
}

TEST_CASE("cuda::label_gaps is the absolute difference") {
  if (skips_without_device()) return;
  random_source random(test_seed(431));
  for (const index_t tokens : {0, 1, 255, 256, 257, 3000}) {
    const auto teacher = random.normal_values<float>(tokens);
    auto student = random.normal_values<float>(tokens);
    std::vector<float> expected(student.size()), found(student.size());
    blockattn::label_gaps(teacher, student, expected);
    device_label_gaps(teacher, student, found);
    CHECK(found == expected);
    device_label_gaps(teacher, student, student);
    CHECK(student == expected);
  }
}

TEST_CASE("cuda: label verbs refuse bad arguments in a sentence") {
  const std::vector<float> logits(20);
  const std::vector<std::int32_t> labels = {0, 9};
  std::vector<float> found(2, -7.0F);
  const auto refused = [&](logits_view<const float> view, std::span<const std::int32_t> of,
                           std::span<float> out, const char* sentence) {
    CHECK_THROWS_WITH(
        refused_label_log_probabilities({.logits = view, .labels = of, .log_probabilities = out}),
        contains(std::string("cuda::label_log_probabilities: ") + sentence));
  };
  const auto view = dense_logits(logits.data(), 2, 10);
  refused(view, std::span(labels).first(1), found, "labels has 1 entries for 2 tokens");
  refused(view, labels, std::span(found).first(1), "log_probabilities has 1 entries for 2 tokens");
  refused({nullptr, 2, 10, 10}, labels, found, "logits.data is null");
  refused({logits.data(), 2, 0, 10}, labels, found, "logits has 2 tokens over an empty vocabulary");
  CHECK_THROWS_WITH(
      refused_label_gaps(logits, std::vector<float>(2), found),
      contains(
          "cuda::label_gaps: 20 log-probabilities of the teacher, 2 of the student, 2 scores"));
  CHECK(found == std::vector<float>{-7, -7});
}
