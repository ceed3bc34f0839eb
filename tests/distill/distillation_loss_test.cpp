// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/distillation_loss.hpp>

#include <blockattn/core/eigen_executor.hpp>
#include <cstring>

#include "distill/distillation_agreement.hpp"
#include "support/catch.hpp"
#include "support/shuffling_executor.hpp"

using namespace blockattn_test;

namespace {

/// The CPU as a backend of the shared tests.
struct cpu_distillation {
  template <class Teacher, class Student, class Gradient>
  double distillation_loss(const distillation_arguments<Teacher, Student, Gradient>& arguments,
                           const distillation_options& options) const {
    return blockattn::distillation_loss(arguments, options);
  }
  template <class C>
  static summation_rounding rounding(index_t /*vocabulary*/) {
    constexpr index_t width = detail::lanes<C, default_arch>;
    return {.additions = static_cast<double>(detail::logits_chunk / width + width)};
  }
};

template <class Teacher, class Student, class Gradient>
void check_random_calls(std::uint64_t default_seed) {
  // Around one vector, around one chunk, and several chunks.
  blockattn_test::check_random_calls<Teacher, Student, Gradient>(
      cpu_distillation{}, default_seed, {1, 2, 15, 16, 17, 40, 1023, 1024, 1025, 2600});
}

}  // namespace

TEST_CASE("the loss and its gradient are the reference's, fp32", "[distillation_loss]") {
  check_random_calls<float, float, float>(301);
}
TEST_CASE("the loss and its gradient are the reference's, fp64", "[distillation_loss]") {
  check_random_calls<double, double, double>(302);
}
TEST_CASE("the loss and its gradient are the reference's, bf16", "[distillation_loss]") {
  check_random_calls<bfloat16, bfloat16, bfloat16>(303);
}
TEST_CASE("the loss and its gradient are the reference's, mixed storage", "[distillation_loss]") {
  check_random_calls<float16, bfloat16, float>(304);
  check_random_calls<float, float16, float16>(305);
}

TEMPLATE_TEST_CASE("logits of +-1e4 give finite losses and exact gradients",
                   "[distillation_loss]",
                   float,
                   double,
                   bfloat16,
                   float16) {
  check_large_logits<TestType>(cpu_distillation{}, 306);
}

TEST_CASE("identical logits: loss and gradient are 0", "[distillation_loss]") {
  check_identical_logits<float>(cpu_distillation{}, 307);
}

TEST_CASE("Jensen-Shannon with equal shares is symmetric; KL turned round is the other KL",
          "[distillation_loss]") {
  random_source random(test_seed(308));
  distillation_case<double> test(random, {.tokens = 4, .vocabulary = 2100, .plain = true}, {});
  auto forwards = test.arguments();
  forwards.d_student = {};
  auto backwards = forwards;
  std::swap(backwards.teacher, backwards.student);
  const auto loss = [](const distillation_arguments<double>& arguments, divergence kind) {
    return distillation_loss(arguments, {.divergence = kind, .temperature = 1.5});
  };
  const double symmetric = loss(forwards, divergence::jensen_shannon);
  CHECK(symmetric > 0);
  CHECK(symmetric == Approx(loss(backwards, divergence::jensen_shannon)).epsilon(1e-13));
  CHECK(loss(forwards, divergence::forward_kl) ==
        Approx(loss(backwards, divergence::reverse_kl)).epsilon(1e-13));
  CHECK(std::abs(loss(forwards, divergence::forward_kl) - loss(backwards, divergence::forward_kl)) >
        1e-3);
}

TEMPLATE_TEST_CASE("a teacher's share below the accumulator's range leaves everything finite",
                   "[distillation_loss]",
                   float,
                   double) {
  using C = TestType;
  const std::vector<C> teacher = {C(1000), C(0), C(3)}, student = {C(-1000), C(0), C(3)};
  std::vector<C> d_student(3);
  const distillation_arguments<C> arguments = {.teacher = dense_logits(teacher.data(), 1, 3),
                                               .student = dense_logits(student.data(), 1, 3),
                                               .d_student = dense_logits(d_student.data(), 1, 3)};
  for (const double share : {1e-50, 1e-320}) {
    const distillation_options options = {.divergence = divergence::jensen_shannon,
                                          .teacher_share = share};
    CHECK(std::abs(distillation_loss(arguments, options)) < 1e-6);
    for (const C gradient : d_student) CHECK(std::abs(gradient) < C(1e-6));
  }
}

TEST_CASE("a constant added to a row of logits changes nothing", "[distillation_loss]") {
  random_source random(test_seed(309));
  for (const distillation_options& options : all_distillation_options()) {
    distillation_case<double> test(random, {.tokens = 3, .vocabulary = 1200, .plain = true},
                                   options);
    const double loss = distillation_loss(test.arguments(), options);
    std::vector<double> gradient;
    for (index_t token = 0; token < 3; ++token) {
      for (index_t v = 0; v < 1200; ++v) {
        gradient.push_back(test.gradient_at(token, v));
        test.teacher.view().row(token, 0)[v] += 8;
        test.student.view().row(token, 0)[v] -= 16;
      }
    }
    // The sums round to the last digit of numbers below 32.
    CHECK(std::abs(distillation_loss(test.arguments(), options) - loss) <= 1e-12 * (1 + loss));
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      const auto at = static_cast<index_t>(i);
      const double scale = std::abs(options.gradient_scale);
      REQUIRE(std::abs(test.gradient_at(at / 1200, at % 1200) - gradient[i]) <= 1e-13 * scale);
    }
  }
}

TEST_CASE("a top-k teacher with k = vocabulary is the full teacher", "[distillation_loss]") {
  random_source random(test_seed(310));
  for (const distillation_options& options : all_distillation_options()) {
    distillation_case<double> test(
        random, {.tokens = 3, .vocabulary = 1100, .k = 1100, .magnitude = 2}, options);
    const double by_top_k = distillation_loss(test.arguments(), options);
    std::vector<double> gradient;
    for (index_t i = 0; i < 3300; ++i) gradient.push_back(test.gradient_at(i / 1100, i % 1100));
    auto arguments = test.arguments();
    arguments.top_k = {};
    arguments.teacher = test.logits(test.teacher);
    CHECK(distillation_loss(arguments, options) == Approx(by_top_k).epsilon(1e-12));
    for (index_t i = 0; i < 3300; ++i) {
      REQUIRE(
          std::abs(test.gradient_at(i / 1100, i % 1100) - gradient[static_cast<std::size_t>(i)]) <=
          1e-13 * std::abs(options.gradient_scale));
    }
  }
}

TEST_CASE("what the rest of a top-k teacher weighs follows from the probabilities",
          "[distillation_loss]") {
  random_source random(test_seed(311));
  distillation_case<double> test(random, {.tokens = 4, .vocabulary = 300, .k = 7, .plain = true},
                                 {});
  auto arguments = test.arguments();
  const double given = distillation_loss(arguments, test.options);
  arguments.top_k.rest_mass = {};
  CHECK(distillation_loss(arguments, test.options) == Approx(given).epsilon(1e-12));

  // Lumping loses information: never more than the divergence over the vocabulary.
  arguments.top_k = {};
  arguments.teacher = test.logits(test.teacher);
  CHECK(distillation_loss(arguments, test.options) > given);

  // Probabilities that already reach 1: the rest weighs the accumulator's epsilon, and is finite.
  const std::vector<std::int32_t> id = {5};
  const std::vector<double> certain = {0.0};
  const std::vector<double> no_rest = {0.0};
  for (const divergence kind : all_divergences) {
    for (const bool explicit_rest : {false, true}) {
      const double loss = distillation_loss(
          distillation_arguments<double>{
              .top_k = {.ids = id,
                        .log_probabilities = certain,
                        .rest_mass = explicit_rest ? std::span<const double>(no_rest)
                                                   : std::span<const double>()},
              .student = {test.logits(test.student).data, 1, 300, 300}},
          {.divergence = kind});
      CHECK(std::isfinite(loss));
      CHECK(loss > 0);
    }
  }
}

TEST_CASE("the weights' common factor changes nothing, a given total weight does",
          "[distillation_loss]") {
  random_source random(test_seed(312));
  distillation_case<double> test(random, {.tokens = 9, .vocabulary = 70}, {});
  const double loss = distillation_loss(test.arguments(), test.options);
  double total = 0;
  std::vector<double> gradient;
  for (index_t token = 0; token < 9; ++token) {
    gradient.push_back(test.gradient_at(token, 3));
    if (test.counts(token)) total += test.weights[static_cast<std::size_t>(token)];
  }
  for (double& weight : test.weights) weight *= 4;  // exact
  CHECK(distillation_loss(test.arguments(), test.options) == loss);
  for (index_t token = 0; token < 9; ++token)
    CHECK(test.gradient_at(token, 3) == gradient[static_cast<std::size_t>(token)]);
  // One batch in two calls: with the total of both, the parts add up.
  test.options.total_weight = 8 * total;
  CHECK(distillation_loss(test.arguments(), test.options) == Approx(loss / 2).epsilon(1e-14));
}

TEST_CASE("labels alone are the cross-entropy, and need no teacher", "[distillation_loss]") {
  random_source random(test_seed(313));
  distillation_case<double> test(random, {.tokens = 6, .vocabulary = 1030, .plain = true},
                                 {.temperature = 2, .label_weight = 1});
  auto arguments = test.arguments();
  arguments.teacher = {};
  const double loss = distillation_loss(arguments, test.options);
  double expected = 0;
  for (index_t token = 0; token < 6; ++token) {
    const double* const row = test.student.view().row(token, 0);
    double sum = 0;
    for (index_t v = 0; v < 1030; ++v) sum += std::exp(row[v]);
    const std::int32_t label = test.labels[static_cast<std::size_t>(token)];
    if (label >= 0) expected += (std::log(sum) - row[label]) / 6;
    for (index_t v = 0; v < 1030; ++v) {
      const double gradient = label < 0 ? 0 : (std::exp(row[v]) / sum - (v == label ? 1 : 0)) / 6;
      REQUIRE(std::abs(test.gradient_at(token, v) - gradient) <= 1e-15);
    }
  }
  CHECK(loss == Approx(expected).epsilon(1e-13));
}

TEST_CASE("when no token counts, loss and gradient are 0 and nothing is read",
          "[distillation_loss]") {
  check_no_token_counts<float>(cpu_distillation{}, 314);
}

TEMPLATE_TEST_CASE("a gradient in place of the logits has the bits of one beside them",
                   "[distillation_loss]",
                   float,
                   double,
                   bfloat16) {
  check_in_place<TestType>(cpu_distillation{}, 315);
}

TEST_CASE("the same bits for every executor, and with or without a gradient",
          "[distillation_loss]") {
  const std::uint64_t seed = test_seed(316);
  CAPTURE(seed);
  random_source random(seed);
  Eigen::ThreadPool pool(3);
  for (const index_t vocabulary : {50, 3000}) {  // several tokens to a task, and one
    for (const distillation_options& options : all_distillation_options()) {
      for (const index_t k : {0, 20}) {
        distillation_case<float> test(
            random, {.tokens = vocabulary == 50 ? 1000 : 13, .vocabulary = vocabulary, .k = k},
            options);
        const double loss = distillation_loss(test.arguments(), options);
        const auto expected = bits_of(test);
        CHECK(distillation_loss(test.arguments(), options, eigen_executor(pool)) == loss);
        CHECK(bits_of(test) == expected);
        CHECK(distillation_loss(test.arguments(), options, shuffling_executor(5, seed)) == loss);
        CHECK(bits_of(test) == expected);

        // The phases by hand, on a workspace that holds NaN.
        const auto job = prepare_distillation_loss(test.arguments(), options);
        const workspace_buffer workspace(workspace_size(job, 2));
        std::memset(workspace.bytes().data(), 0xff, workspace.bytes().size());
        for (index_t task = 0; task < job.tasks(0); ++task)
          job.run(0, task, task % 2, workspace.bytes());
        CHECK(job.loss(workspace.bytes()) == loss);
        CHECK(bits_of(test) == expected);

        auto without = test.arguments();
        without.d_student = {};
        CHECK(distillation_loss(without, options) == loss);
      }
    }
  }
}

TEST_CASE("rows do not depend on one another", "[distillation_loss]") {
  check_rows_alone<float>(cpu_distillation{}, 317);
}
