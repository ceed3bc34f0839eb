// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/distillation_loss.hpp>

#include <blockattn/core/eigen_executor.hpp>
#include <cstring>

#include "distill/distillation_case.hpp"
#include "distill/distillation_error_bound.hpp"
#include "support/catch.hpp"
#include "support/shuffling_executor.hpp"

using namespace blockattn_test;

namespace {

/// Runs the call; everything that it says is within the rounding that its storage explains.
template <class Teacher, class Student, class Gradient>
void check_against_reference(distillation_case<Teacher, Student, Gradient>& test) {
  distillation_oracle oracle(test);
  const double loss = distillation_loss(test.arguments(), test.options);
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
    const distillation_error_bound bound(test, oracle, token);
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

template <class Teacher, class Student, class Gradient>
void check_random_calls(std::uint64_t default_seed) {
  const std::uint64_t seed = test_seed(default_seed);
  random_source random(seed);
  for (const distillation_options& options : all_distillation_options()) {
    // Around one vector, around one chunk, and several chunks.
    for (const index_t vocabulary : {1, 2, 15, 16, 17, 40, 1023, 1024, 1025, 2600}) {
      for (const bool top_k : {false, true}) {
        const index_t k = top_k ? random.integer(1, std::min<index_t>(vocabulary, 60)) : 0;
        const distillation_shape shape{.tokens = random.integer(1, 3),
                                       .vocabulary = vocabulary,
                                       .k = k,
                                       .magnitude = random.chance(0.2) ? 40.0 : 3.0,
                                       .student_noise = random.real(0, 1)};
        distillation_options scaled = options;
        // Lets 16-bit gradients of small probabilities be numbers.
        if (format_of<Gradient> == storage_format::fp16) scaled.gradient_scale *= 8;
        CAPTURE(seed, vocabulary, k, shape.tokens, shape.magnitude, shape.student_noise,
                static_cast<int>(options.divergence), options.temperature, options.label_weight,
                options.gradient_scale);
        distillation_case<Teacher, Student, Gradient> test(random, shape, scaled);
        check_against_reference(test);
      }
    }
  }
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
  const std::uint64_t seed = test_seed(306);
  random_source random(seed);
  for (const distillation_options& options : all_distillation_options()) {
    for (const index_t k : {0, 5}) {
      CAPTURE(seed, k, static_cast<int>(options.divergence), options.temperature);
      distillation_case<TestType> test(
          random, {.tokens = 2, .vocabulary = 1500, .k = k, .magnitude = 0, .plain = true},
          options);
      for (index_t token = 0; token < 2; ++token) {
        for (index_t v = 0; v < 1500; ++v) {
          store_scalar(test.teacher.view().row(token, 0)[v], random.chance(0.5) ? 1e4 : -1e4);
          store_scalar(test.student.view().row(token, 0)[v], random.chance(0.01) ? 1e4 : -1e4);
        }
      }
      check_against_reference(test);
    }
  }
}

TEST_CASE("identical logits: loss and gradient are 0", "[distillation_loss]") {
  random_source random(test_seed(307));
  for (const divergence kind : all_divergences) {
    for (const double temperature : {1.0, 0.3, 5.0}) {
      CAPTURE(static_cast<int>(kind), temperature);
      distillation_case<float> test(
          random, {.tokens = 3, .vocabulary = 3001, .student_noise = 0, .plain = true},
          {.divergence = kind, .teacher_share = 0.3, .temperature = temperature});
      CHECK(distillation_loss(test.arguments(), test.options) == 0);
      for (index_t token = 0; token < 3; ++token) {
        for (index_t v = 0; v < 3001; ++v) REQUIRE(test.gradient_at(token, v) == 0);
      }
    }
  }
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
  random_source random(test_seed(314));
  distillation_case<float> test(random, {.tokens = 5, .vocabulary = 90, .k = 3}, {});
  for (const bool by_weight : {false, true}) {
    std::fill(test.weights.begin(), test.weights.end(), by_weight ? 0.0F : 1.0F);
    std::fill(test.ignored.begin(), test.ignored.end(), std::uint8_t{!by_weight});
    auto arguments = test.arguments();
    const hostile_tensor<float> unread(5, 1, 90, {});  // NaN
    arguments.student = test.logits(unread);
    CHECK(distillation_loss(arguments, test.options) == 0);
    for (index_t token = 0; token < 5; ++token) {
      CHECK(test.token_losses[static_cast<std::size_t>(token)] == 0);
      for (index_t v = 0; v < 90; ++v) REQUIRE(test.gradient_at(token, v) == 0);
    }
  }
  CHECK(distillation_loss(distillation_arguments<float>{}) == 0);  // no tokens at all
}

TEMPLATE_TEST_CASE("a gradient in place of the logits has the bits of one beside them",
                   "[distillation_loss]",
                   float,
                   double,
                   bfloat16) {
  using T = TestType;
  random_source random(test_seed(315));
  for (const distillation_options& options : all_distillation_options()) {
    for (const index_t k : {0, 9}) {
      CAPTURE(k, static_cast<int>(options.divergence), options.temperature, options.label_weight);
      distillation_case<T> test(random, {.tokens = 4, .vocabulary = 2077, .k = k}, options);
      const double beside = distillation_loss(test.arguments(), options);
      const auto expected = bits_of(test);
      auto arguments = test.arguments();
      arguments.d_student = test.logits(test.student);
      CHECK(distillation_loss(arguments, options) == beside);
      for (index_t token = 0; token < 4; ++token) {
        std::memcpy(test.gradient.view().row(token, 0), test.student.view().row(token, 0),
                    2077 * sizeof(T));
      }
      CHECK(bits_of(test) == expected);
      CHECK(test.student.margins_untouched());
    }
  }
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
  random_source random(test_seed(317));
  distillation_case<float> test(random, {.tokens = 8, .vocabulary = 1500, .plain = true},
                                {.total_weight = 8});
  distillation_loss(test.arguments(), test.options);
  const auto together = bits_of(test);
  for (index_t token = 0; token < 8; ++token) {
    const auto slice = [token](auto view) {
      view.data = view.row(token);
      view.tokens = 1;
      return view;
    };
    auto alone = test.arguments();
    const auto t = static_cast<std::size_t>(token);
    distillation_loss({.teacher = slice(alone.teacher),
                       .student = slice(alone.student),
                       .d_student = slice(alone.d_student),
                       .token_losses = alone.token_losses.subspan(t, 1)},
                      test.options);
  }
  CHECK(bits_of(test) == together);
}
