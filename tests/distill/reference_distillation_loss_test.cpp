// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/reference_distillation_loss.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"

using namespace blockattn;

namespace {

/// Two tokens of a vocabulary: p = (3/4, 1/4), q = (1/2, 1/2).
const std::vector<double> teacher = {std::log(3.0), 0.0};
const std::vector<double> student = {0.0, 0.0};

struct result {
  double loss;
  std::vector<double> gradient;
};

result run(const distillation_options& options, const std::vector<std::int32_t>& labels = {}) {
  result found{0, std::vector<double>(2)};
  found.loss = reference::distillation_loss<double>(
      {.teacher = dense_logits<const double>(teacher.data(), 1, 2),
       .student = dense_logits<const double>(student.data(), 1, 2),
       .labels = labels,
       .d_student = dense_logits(found.gradient.data(), 1, 2)},
      options);
  return found;
}

}  // namespace

TEST_CASE("the divergences of two outcomes, by hand", "[reference_distillation_loss]") {
  const result forward = run({});
  CHECK(forward.loss == Approx(0.75 * std::log(1.5) + 0.25 * std::log(0.5)));
  CHECK(forward.gradient[0] == Approx(-0.25));
  CHECK(forward.gradient[1] == Approx(0.25));

  const result reverse = run({.divergence = divergence::reverse_kl});
  CHECK(reverse.loss == Approx(0.5 * std::log(1 / 1.5) + 0.5 * std::log(2.0)));
  CHECK(reverse.gradient[0] == Approx(0.5 * (std::log(1 / 1.5) - reverse.loss)));

  const result mixed = run({.divergence = divergence::jensen_shannon});  // m = (5/8, 3/8)
  const double student_kl = 0.5 * std::log(0.8) + 0.5 * std::log(4 / 3.0);
  CHECK(mixed.loss ==
        Approx(0.5 * (0.75 * std::log(1.2) + 0.25 * std::log(2 / 3.0)) + 0.5 * student_kl));
  CHECK(mixed.gradient[0] == Approx(0.5 * 0.5 * (std::log(0.8) - student_kl)));
}

TEST_CASE("labels and temperature, by hand", "[reference_distillation_loss]") {
  const result label = run({.label_weight = 1}, {1});
  CHECK(label.loss == Approx(std::log(2.0)));
  CHECK(label.gradient[1] == Approx(-0.5));

  // At temperature 2 the teacher says (sqrt 3, 1) / (sqrt 3 + 1); the factor is 4, or none.
  const double p = std::sqrt(3.0) / (std::sqrt(3.0) + 1);
  const double kl = p * std::log(2 * p) + (1 - p) * std::log(2 * (1 - p));
  CHECK(run({.temperature = 2}).loss == Approx(4 * kl));
  CHECK(run({.temperature = 2}).gradient[0] == Approx(2 * (0.5 - p)));
  const result plain = run({.temperature = 2, .temperature_factor = temperature_factor::none});
  CHECK(plain.loss == Approx(kl));
  CHECK(plain.gradient[0] == Approx((0.5 - p) / 2));
}

TEST_CASE("a top-1 teacher of three tokens, by hand", "[reference_distillation_loss]") {
  const std::vector<std::int32_t> ids = {1};
  const std::vector<double> logs = {std::log(0.6)};
  const std::vector<double> logits = {0.0, std::log(2.0), 0.0};  // q = (1/4, 1/2, 1/4)
  std::vector<double> gradient(3);
  const double loss = reference::distillation_loss<double>(
      {.top_k = {.ids = ids, .log_probabilities = logs},
       .student = dense_logits<const double>(logits.data(), 1, 3),
       .d_student = dense_logits(gradient.data(), 1, 3)});
  CHECK(loss == Approx(0.6 * std::log(1.2) + 0.4 * std::log(0.8)));
  CHECK(gradient[1] == Approx(-0.1));
  CHECK(gradient[0] == Approx(0.05));  // the rest shares 0.5 - 0.4 as the student does
  CHECK(gradient[2] == Approx(0.05));
}
