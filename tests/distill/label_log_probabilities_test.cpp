// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/label_log_probabilities.hpp>

#include "distill/distillation_case.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/shuffling_executor.hpp"
#include "support/unit_roundoff.hpp"

using namespace blockattn_test;

TEMPLATE_TEST_CASE("label_log_probabilities is log softmax at the label",
                   "[label_log_probabilities]",
                   float,
                   double,
                   bfloat16,
                   float16) {
  using T = TestType;
  using C = accumulator_t<T>;
  const std::uint64_t seed = test_seed(340);
  random_source random(seed);
  for (const index_t vocabulary : {1, 17, 1024, 2500}) {
    for (const double magnitude : {3.0, 5000.0}) {
      CAPTURE(seed, vocabulary, magnitude);
      distillation_case<T> test(
          random, {.tokens = 7, .vocabulary = vocabulary, .magnitude = magnitude, .plain = true},
          {});
      std::vector<C> found(7, C(-1));
      label_log_probabilities<T>(
          {.logits = test.logits(test.student), .labels = test.labels, .log_probabilities = found});
      for (std::size_t t = 0; t < 7; ++t) {
        if (test.labels[t] < 0) {
          CHECK(found[t] == 0);
          continue;
        }
        const T* const row = test.student.view().row(static_cast<index_t>(t), 0);
        const auto at = [&](index_t v) { return static_cast<long double>(load_scalar(row[v])); };
        long double largest = at(0);
        for (index_t v = 1; v < vocabulary; ++v) largest = std::max(largest, at(v));
        long double sum = 0;
        for (index_t v = 0; v < vocabulary; ++v) sum += std::exp(at(v) - largest);
        const long double label = at(test.labels[t]) - largest;
        // Scale, product, difference, ln 2 and the result are rounded. Each exponential carries 3 u
        // times its exponent, at most 1 / e of itself, and 3 u more; then come the additions.
        const long double bound =
            static_cast<long double>(unit_roundoff<C>()) *
            (5 * std::abs(label) + 5 * std::log(sum) +
             3 * static_cast<long double>(vocabulary) / sum + 8 +
             static_cast<long double>(detail::logits_chunk / detail::lanes<C, default_arch>));
        CHECK(std::abs(static_cast<long double>(found[t]) - (label - std::log(sum))) <= bound);
      }
      std::vector<C> shuffled(7, C(-1));
      label_log_probabilities<T>({.logits = test.logits(test.student),
                                  .labels = test.labels,
                                  .log_probabilities = shuffled},
                                 shuffling_executor(3, seed));
      CHECK(shuffled == found);
    }
  }
}

TEST_CASE("it is minus the loss of the labels alone", "[label_log_probabilities]") {
  random_source random(test_seed(341));
  distillation_case<float> test(random, {.tokens = 6, .vocabulary = 1500, .plain = true},
                                {.label_weight = 1});
  std::vector<float> found(6);
  label_log_probabilities(
      {.logits = test.logits(test.student), .labels = test.labels, .log_probabilities = found});
  distillation_loss(test.arguments(), test.options);
  for (std::size_t t = 0; t < 6; ++t) CHECK(found[t] == -test.token_losses[t]);
}

TEST_CASE("label_gaps is the absolute difference", "[label_log_probabilities]") {
  const std::vector<float> full = {-1, -2, -3};
  std::vector<float> block = {-4, -2, -1};
  label_gaps(full, block, block);
  CHECK(block == std::vector<float>{3, 0, 2});
  CHECK_THROWS_WITH(label_gaps(full, std::vector<float>(2), block),
                    contains("label_gaps: 3 log-probabilities of the teacher, 2 of the student"));
  std::vector<float> four(4);
  CHECK_THROWS_WITH(label_gaps(std::span(four).first(3), block, std::span(four).last(3)),
                    contains("label_gaps: scores and teacher overlap in memory"));
  CHECK_NOTHROW(label_gaps(four, four, four));
}

TEST_CASE("label_log_probabilities refuses bad arguments in a sentence, before it writes",
          "[label_log_probabilities]") {
  const std::vector<float> logits(20);
  const std::vector<std::int32_t> labels = {0, 9};
  std::vector<float> found(2, -7.0F);
  const auto refused = [&](logits_view<const float> view, std::span<const std::int32_t> of,
                           std::span<float> out, const char* sentence) {
    CHECK_THROWS_WITH(
        label_log_probabilities({.logits = view, .labels = of, .log_probabilities = out}),
        contains(sentence));
    CHECK(found == std::vector<float>{-7, -7});
  };
  const auto view = dense_logits(logits.data(), 2, 10);
  const std::vector<std::int32_t> outside = {0, 10};
  refused(view, outside, found,
          "label_log_probabilities: labels[1] is 10 but the vocabulary has 10 tokens");
  refused(view, std::span(labels).first(1), found, "labels has 1 entries for 2 tokens");
  refused(view, labels, std::span(found).first(1), "log_probabilities has 1 entries for 2 tokens");
  CHECK_THROWS_WITH(label_log_probabilities({.logits = dense_logits(found.data(), 1, 2),
                                             .labels = std::span(labels).first(1),
                                             .log_probabilities = std::span<float>(found).last(1)}),
                    contains("log_probabilities and logits overlap in memory"));
  refused({logits.data(), 2, 10, 0}, labels, found, "logits has strides 0 (tokens)");
  refused({nullptr, 2, 10, 10}, labels, found, "logits.data is null");
  refused({logits.data(), 2, 0, 10}, labels, found, "logits has 2 tokens over an empty vocabulary");
}
