// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/distill/distillation_checks.hpp>

#include "distill/distillation_case.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

using arguments_type = distillation_arguments<float>;

/// A valid call of 3 tokens over 10, full or top-k with k = 2; `change` spoils it.
template <class Change>
void check_refused(const char* sentence, index_t k, const Change& change) {
  random_source random(350);
  distillation_case<float> test(random, {.tokens = 3, .vocabulary = 10, .k = k, .plain = true}, {});
  test.labels = {1, -1, 9};
  auto arguments = test.arguments();
  distillation_options options{.label_weight = 0.5};
  change(arguments, options, test);
  CAPTURE(sentence);
  CHECK_THROWS_WITH(distillation_loss(arguments, options), contains(sentence));
  CHECK_THROWS_WITH(reference::distillation_loss(arguments, options), contains(sentence));
  CHECK(test.gradient.all_untouched());
  CHECK(std::isnan(test.token_losses[0]));
}

}  // namespace

TEST_CASE("a distillation loss refuses options out of range", "[distillation_checks]") {
  const auto refused = [](const char* sentence, auto&& change) {
    check_refused(sentence, 0,
                  [&](auto&, distillation_options& options, auto&) { change(options); });
  };
  for (const double bad : {0.0, -1.0, 1e-320, 1e39, std::nan("")}) {
    refused("options.temperature is ", [bad](auto& o) { o.temperature = bad; });
  }
  for (const double bad : {0.0, 1.0, std::nan("")}) {
    refused("options.teacher_share is ", [bad](auto& o) { o.teacher_share = bad; });
  }
  for (const double bad : {-0.1, 1.1, std::nan("")}) {
    refused("options.label_weight is ", [bad](auto& o) { o.label_weight = bad; });
  }
  refused("options.total_weight is -1, must be finite and >= 0",
          [](auto& o) { o.total_weight = -1; });
  refused("options.divergence is 3, not one of its enumerators 0 to 2",
          [](auto& o) { o.divergence = static_cast<divergence>(3); });
  refused("options.temperature_factor is -1",
          [](auto& o) { o.temperature_factor = static_cast<temperature_factor>(-1); });
  refused("options.gradient_scale is inf, must be finite",
          [](auto& o) { o.gradient_scale = std::numeric_limits<double>::infinity(); });
}

TEST_CASE("a distillation loss refuses tensors that do not fit", "[distillation_checks]") {
  const auto refused = [](const char* sentence, auto&& change) {
    check_refused(sentence, 0, change);
  };
  refused("student is (-1, 10), sizes must be >= 0",
          [](auto& a, auto&, auto&) { a.student.tokens = -1; });
  refused("token ids fit 32 bits",
          [](auto& a, auto&, auto&) { a.student.vocabulary = index_t{1} << 31; });
  refused("student has 3 tokens over an empty vocabulary",
          [](auto& a, auto&, auto&) { a.student.vocabulary = 0; });
  refused("student.data is null but its size is (3, 10)",
          [](auto& a, auto&, auto&) { a.student.data = nullptr; });
  refused("teacher is (2, 10) but student is (3, 10)",
          [](auto& a, auto&, auto&) { a.teacher.tokens = 2; });
  refused("teacher is (3, 9) but student is (3, 10)",
          [](auto& a, auto&, auto&) { a.teacher.vocabulary = 9; });
  refused("neither teacher nor top_k is given, and options.label_weight is 0.5",
          [](auto& a, auto&, auto&) { a.teacher = {}; });
  refused("d_student is (3, 9) but student is (3, 10)",
          [](auto& a, auto&, auto&) { a.d_student.vocabulary = 9; });
  refused("rows of d_student overlap: vocabulary 10, token_stride 9",
          [](auto& a, auto&, auto&) { a.d_student.token_stride = 9; });
  refused("d_student and teacher overlap in memory",
          [](auto& a, auto&, auto& test) { a.d_student = test.logits(test.teacher); });
  refused("token_losses and weights overlap in memory", [](auto& a, auto&, auto& test) {
    a.weights = test.token_losses;
    a.token_losses = test.token_losses;
  });
  refused("d_student and student overlap in memory: d_student covers",
          [](auto& a, auto&, auto& test) {
            a.d_student = test.logits(test.student);
            a.d_student.token_stride = 99;
          });
}

TEST_CASE("a distillation loss refuses weights and labels that do not fit",
          "[distillation_checks]") {
  const auto refused = [](const char* sentence, auto&& change) {
    check_refused(sentence, 0, change);
  };
  refused("weights has 2 entries for 3 tokens",
          [](auto& a, auto&, auto& test) { a.weights = std::span(test.weights).first(2); });
  refused("weights[1] is -1, must be finite and >= 0",
          [](auto&, auto&, auto& test) { test.weights[1] = -1; });
  refused("weights[2] is", [](auto&, auto&, auto& test) { test.weights[2] = std::nanf(""); });
  refused("ignored has 1 entries for 3 tokens",
          [](auto& a, auto&, auto& test) { a.ignored = std::span(test.ignored).first(1); });
  refused("labels has 0 entries for 3 tokens", [](auto& a, auto&, auto&) { a.labels = {}; });
  refused("labels[0] is 10 but the vocabulary has 10 tokens",
          [](auto&, auto&, auto& test) { test.labels[0] = 10; });
  refused("token_losses has 2 entries for 3 tokens",
          [](auto& a, auto&, auto&) { a.token_losses = a.token_losses.first(2); });
}

TEST_CASE("a distillation loss refuses top-k teachers that do not fit", "[distillation_checks]") {
  const auto refused = [](const char* sentence, auto&& change) {
    check_refused(sentence, 2, change);
  };
  refused("teacher and top_k are both given",
          [](auto& a, auto&, auto& test) { a.teacher = test.logits(test.teacher); });
  refused("top_k.ids has 5 entries, not k <= 10 for each of 3 tokens",
          [](auto& a, auto&, auto&) { a.top_k.ids = a.top_k.ids.first(5); });
  refused("top_k.log_probabilities has 5 entries, ids 6", [](auto& a, auto&, auto&) {
    a.top_k.log_probabilities = a.top_k.log_probabilities.first(5);
  });
  refused("top_k.ids[3] is 4 after 4, must rise within a token",
          [](auto&, auto&, auto& test) { test.ids[2] = test.ids[3] = 4; });
  refused("top_k.ids[1] is 10 after", [](auto&, auto&, auto& test) { test.ids[1] = 10; });
  refused("top_k.ids[0] is -1 after -1", [](auto&, auto&, auto& test) { test.ids[0] = -1; });
  refused("top_k.log_probabilities[4] is 0.5, must be finite and <= 0",
          [](auto&, auto&, auto& test) { test.log_probabilities[4] = 0.5F; });
  refused("top_k.log_probabilities[0] is -inf", [](auto&, auto&, auto& test) {
    test.log_probabilities[0] = -std::numeric_limits<float>::infinity();
  });
  refused("top_k.rest_mass has 2 entries for 3 tokens",
          [](auto& a, auto&, auto&) { a.top_k.rest_mass = a.top_k.rest_mass.first(2); });
  refused("top_k.rest_mass[2] is 1.5, must be in [0, 1]",
          [](auto&, auto&, auto& test) { test.rest_mass[2] = 1.5F; });
}

TEST_CASE("a workspace that does not fit is refused before anything is written",
          "[distillation_checks]") {
  random_source random(351);
  distillation_case<bfloat16> test(random, {.tokens = 3, .vocabulary = 10, .plain = true}, {});
  const auto job = prepare_distillation_loss(test.arguments());
  const index_t size = workspace_size(job, 1);
  const workspace_buffer workspace(size + 8);
  serial_executor workers;
  CHECK_THROWS_WITH(distillation_loss(test.arguments(), {}, workers,
                                      workspace.bytes().first(static_cast<std::size_t>(size - 1))),
                    contains("distillation_loss: workspace has"));
  CHECK_THROWS_WITH(distillation_loss(test.arguments(), {}, workers, workspace.bytes().subspan(8)),
                    contains("8 bytes past a multiple of 64"));
  CHECK(test.gradient.all_untouched());
  // Enough, and no more than the three rows of each worker that the documentation promises.
  const auto rows = [&](index_t concurrency) { return workspace_size(job, concurrency); };
  CHECK(rows(3) - rows(2) == rows(2) - rows(1));
  CHECK(rows(2) - rows(1) <= 3 * (10 * 4 + 64) + 3 * 64);
}

TEST_CASE("the weight of an ignored token may be anything", "[distillation_checks]") {
  random_source random(351);
  distillation_case<float> test(random, {.tokens = 3, .vocabulary = 10, .plain = true}, {});
  test.weights[1] = std::nanf("");
  const std::vector<std::uint8_t> ignored = {0, 1, 0};
  auto arguments = test.arguments();
  arguments.ignored = ignored;
  CHECK(std::isfinite(distillation_loss(arguments, {})));
  CHECK(std::isfinite(reference::distillation_loss(arguments, {})));
}
