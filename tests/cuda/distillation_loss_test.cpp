// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_distill.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

/// Around pieces of 4 and 8 logits and tiles of 2048 and 4096.
const std::vector<index_t> vocabularies = {1, 7, 8, 9, 1023, 1024, 1025, 2048, 2049, 4095, 4097};

}  // namespace

TEST_CASE("cuda::distillation_loss equals the reference in fp32") {
  if (skips_without_device()) return;
  check_random_calls<float, float, float>(cuda_distillation{}, 401, vocabularies);
}
TEST_CASE("cuda::distillation_loss equals the reference in bf16") {
  if (skips_without_device()) return;
  check_random_calls<bfloat16, bfloat16, bfloat16>(cuda_distillation{}, 402, vocabularies);
}
TEST_CASE("cuda::distillation_loss equals the reference in fp16") {
  if (skips_without_device()) return;
  check_random_calls<float16, float16, float16>(cuda_distillation{}, 403, vocabularies);
}
TEST_CASE("cuda::distillation_loss equals the reference in mixed storage") {
  if (skips_without_device()) return;
  check_random_calls<float16, bfloat16, float>(cuda_distillation{}, 404, vocabularies);
  check_random_calls<float, float16, float16>(cuda_distillation{}, 405, vocabularies);
}

TEST_CASE("cuda::distillation_loss equals the reference over aligned rows") {
  if (skips_without_device()) return;
  check_random_calls<float, float, float>(cuda_distillation{}, 406, vocabularies, true);
  check_random_calls<bfloat16, bfloat16, bfloat16>(cuda_distillation{}, 407, vocabularies, true);
  check_random_calls<float16, bfloat16, float>(cuda_distillation{}, 408, vocabularies, true);
}

TEST_CASE("cuda::distillation_loss equals the reference where shared memory holds part of a row") {
  if (skips_without_device()) return;
  random_source random(test_seed(409));
  for (const divergence kind : all_divergences) {
    for (const bool aligned : {false, true}) {
      for (const index_t k : {0, 64}) {
        CAPTURE(static_cast<int>(kind), aligned, k);
        const distillation_shape shape{
            .tokens = 2, .vocabulary = 50257, .k = k, .plain = true, .aligned = aligned};
        const distillation_options options{
            .divergence = kind, .temperature = 2, .label_weight = 0.3, .gradient_scale = 1024};
        distillation_case<float> in_fp32(random, shape, options);
        check_against_reference(cuda_distillation{}, in_fp32);
        distillation_case<bfloat16> in_bf16(random, shape, options);
        check_against_reference(cuda_distillation{}, in_bf16);
      }
    }
  }
}

TEMPLATE_TEST_CASE(
    "cuda: logits of +-1e4 give finite losses and exact gradients", "", float, bfloat16, float16) {
  if (skips_without_device()) return;
  check_large_logits<TestType>(cuda_distillation{}, 410);
}

TEMPLATE_TEST_CASE("cuda: identical logits: loss and gradient are 0", "", float, bfloat16) {
  if (skips_without_device()) return;
  check_identical_logits<TestType>(cuda_distillation{}, 411);
}

TEMPLATE_TEST_CASE("cuda: when no token counts, loss and gradient are 0 and nothing is read",
                   "",
                   float,
                   bfloat16) {
  if (skips_without_device()) return;
  check_no_token_counts<TestType>(cuda_distillation{}, 412);
}

TEMPLATE_TEST_CASE("cuda: a gradient in place of the logits has the bits of one beside them",
                   "",
                   float,
                   bfloat16,
                   float16) {
  if (skips_without_device()) return;
  check_in_place<TestType>(cuda_distillation{}, 413);
}

TEST_CASE("cuda: rows of logits do not depend on one another") {
  if (skips_without_device()) return;
  check_rows_alone<bfloat16>(cuda_distillation{}, 414);
}

TEST_CASE("cuda: the loss has the same bits again, and with or without a gradient") {
  if (skips_without_device()) return;
  random_source random(test_seed(415));
  for (const distillation_options& options : all_distillation_options()) {
    for (const index_t k : {0, 20}) {
      CAPTURE(k, static_cast<int>(options.divergence), options.temperature, options.label_weight);
      distillation_case<bfloat16> test(random, {.tokens = 700, .vocabulary = 50, .k = k}, options);
      const double loss = cuda_distillation{}.distillation_loss(test.arguments(), options);
      const auto expected = bits_of(test);
      CHECK(cuda_distillation{}.distillation_loss(test.arguments(), options) == loss);
      CHECK(bits_of(test) == expected);
      auto without = test.arguments();
      without.d_student = {};
      CHECK(cuda_distillation{}.distillation_loss(without, options) == loss);
      CHECK(bits_of(test) == expected);
    }
  }
}

TEST_CASE("cuda: a top-k teacher with k = vocabulary is the full teacher") {
  if (skips_without_device()) return;
  random_source random(test_seed(416));
  for (const distillation_options& options : all_distillation_options()) {
    distillation_case<float> test(
        random, {.tokens = 2, .vocabulary = 1100, .k = 1100, .magnitude = 2}, options);
    CAPTURE(static_cast<int>(options.divergence), options.temperature, options.label_weight);
    check_against_reference(cuda_distillation{}, test);
  }
}

TEST_CASE("cuda: what the rest of a top-k teacher weighs follows from the probabilities") {
  if (skips_without_device()) return;
  random_source random(test_seed(417));
  for (const divergence kind : all_divergences) {
    distillation_case<float> test(random, {.tokens = 4, .vocabulary = 300, .k = 7, .plain = true},
                                  {.divergence = kind});
    auto arguments = test.arguments();
    arguments.top_k.rest_mass = {};
    const double found = cuda_distillation{}.distillation_loss(arguments, test.options);
    CHECK(found == Approx(reference::distillation_loss(arguments, test.options)).epsilon(1e-5));

    // Probabilities that already reach 1: the rest weighs the accumulator's epsilon.
    for (float& log : test.log_probabilities) log = 0;
    const double certain = cuda_distillation{}.distillation_loss(arguments, test.options);
    CHECK(certain == Approx(reference::distillation_loss(arguments, test.options)).epsilon(1e-5));
  }
}

TEST_CASE("cuda: labels and ids outside the vocabulary make NaN of their token alone") {
  if (skips_without_device()) return;
  random_source random(test_seed(418));
  for (const std::int32_t outside : {300, 1 << 30}) {
    distillation_case<float> test(random, {.tokens = 3, .vocabulary = 300, .k = 4, .plain = true},
                                  {.label_weight = 0.5});
    test.labels = {2, outside, 7};
    CHECK(std::isnan(cuda_distillation{}.distillation_loss(test.arguments(), test.options)));
    CHECK(std::isfinite(test.token_losses[0]));
    CHECK(std::isnan(test.token_losses[1]));
    CHECK(std::isfinite(test.token_losses[2]));

    test.labels = {2, 1, 7};
    test.ids[4 * 2 + 1] = outside;
    test.ids[4 * 2 + 2] = -5;
    CHECK(std::isnan(cuda_distillation{}.distillation_loss(test.arguments(), test.options)));
    CHECK(std::isfinite(test.token_losses[1]));
    CHECK(std::isnan(test.token_losses[2]));
    for (index_t v = 0; v < 300; ++v) {
      REQUIRE(std::isfinite(test.gradient_at(1, v)));
      REQUIRE(std::isnan(test.gradient_at(2, v)));
    }
    CHECK(test.gradient.margins_untouched());
  }
}

TEST_CASE("cuda: NaN in a row that counts is never taken for a number") {
  if (skips_without_device()) return;
  random_source random(test_seed(419));
  for (const divergence kind : all_divergences) {
    for (const index_t at : {0, 77, 2999}) {
      distillation_case<float> test(random, {.tokens = 2, .vocabulary = 3000, .plain = true},
                                    {.divergence = kind});
      test.student.view().row(1, 0)[at] = std::nanf("");
      CHECK(std::isnan(cuda_distillation{}.distillation_loss(test.arguments(), test.options)));
      CHECK(std::isfinite(test.token_losses[0]));
      CHECK(std::isnan(test.token_losses[1]));
    }
  }
}

TEST_CASE("cuda: every bad argument of a distillation loss is refused in a sentence") {
  random_source random(test_seed(420));
  const auto refused = [&](const std::string& sentence, index_t k, const auto& change) {
    distillation_case<float> test(random, {.tokens = 3, .vocabulary = 10, .k = k, .plain = true},
                                  {});
    auto arguments = test.arguments();
    distillation_options options{.label_weight = 0.5};
    const workspace_buffer memory(device_loss_workspace_size(3));
    std::span<std::byte> workspace = memory.bytes();
    change(arguments, options, workspace);
    CAPTURE(sentence);
    CHECK_THROWS_WITH(refused_distillation_loss(arguments, options, workspace),
                      contains("cuda::distillation_loss: " + sentence));
    CHECK(test.gradient.all_untouched());
  };
  using logits = logits_view<const float>;
  refused("options.temperature is 0", 0, [](auto&, auto& o, auto&) { o.temperature = 0; });
  refused("options.teacher_share is 1", 0, [](auto&, auto& o, auto&) { o.teacher_share = 1; });
  refused("options.label_weight is -0.1", 0, [](auto&, auto& o, auto&) { o.label_weight = -0.1; });
  refused("options.total_weight is -1", 0, [](auto&, auto& o, auto&) { o.total_weight = -1; });
  refused("options.gradient_scale is nan", 0,
          [](auto&, auto& o, auto&) { o.gradient_scale = std::nan(""); });
  refused("student.data is null", 0, [](auto& a, auto&, auto&) { a.student.data = nullptr; });
  refused("student has 3 tokens over an empty vocabulary", 0,
          [](auto& a, auto&, auto&) { a.student.vocabulary = 0; });
  refused("teacher is (3, 9) but student is (3, 10)", 0,
          [](auto& a, auto&, auto&) { a.teacher.vocabulary = 9; });
  refused("neither teacher nor top_k is given", 0,
          [](auto& a, auto&, auto&) { a.teacher = logits{}; });
  refused("teacher and top_k are both given", 2,
          [](auto& a, auto&, auto&) { a.teacher = a.student; });
  refused("top_k.ids has 5 entries", 2,
          [](auto& a, auto&, auto&) { a.top_k.ids = a.top_k.ids.first(5); });
  refused("top_k.log_probabilities has 5 entries, ids 6", 2, [](auto& a, auto&, auto&) {
    a.top_k.log_probabilities = a.top_k.log_probabilities.first(5);
  });
  refused("top_k.rest_mass has 2 entries for 3 tokens", 2,
          [](auto& a, auto&, auto&) { a.top_k.rest_mass = a.top_k.rest_mass.first(2); });
  refused("weights has 2 entries for 3 tokens", 0,
          [](auto& a, auto&, auto&) { a.weights = a.weights.first(2); });
  refused("ignored has 1 entries for 3 tokens", 0,
          [](auto& a, auto&, auto&) { a.ignored = a.ignored.first(1); });
  refused("labels has 0 entries for 3 tokens", 0, [](auto& a, auto&, auto&) { a.labels = {}; });
  refused("token_losses has 2 entries for 3 tokens", 0,
          [](auto& a, auto&, auto&) { a.token_losses = a.token_losses.first(2); });
  refused("rows of d_student overlap: vocabulary 10, token_stride 9", 0,
          [](auto& a, auto&, auto&) { a.d_student.token_stride = 9; });
  refused("d_student and teacher overlap in memory", 0,
          [](auto& a, auto&, auto&) { a.d_student.data = const_cast<float*>(a.teacher.data); });
  refused("d_student and student overlap in memory", 0, [](auto& a, auto&, auto&) {
    a.d_student.data = const_cast<float*>(a.student.data);
    a.d_student.token_stride = 99;
  });
  refused("logits are (3, 1073741825), a launch takes at most (2147483647, 1073741824)", 0,
          [](auto& a, auto&, auto&) {
            a.d_student = {};
            a.token_losses = {};
            a.student.vocabulary = a.teacher.vocabulary = (index_t{1} << 30) + 1;
          });
  refused("a top-k teacher over a vocabulary of 524289 tokens, on a device they are at most 524288",
          2, [](auto& a, auto&, auto&) {
            a.d_student = {};
            a.student.vocabulary = (1 << 19) + 1;
          });
  refused("workspace has 127 bytes, needs 128", 0,
          [](auto&, auto&, auto& workspace) { workspace = workspace.first(127); });

  distillation_case<float> valid(random, {.tokens = 3, .vocabulary = 10, .plain = true}, {});
  const workspace_buffer workspace(device_loss_workspace_size(3));
  CHECK_NOTHROW(refused_distillation_loss(valid.arguments(), {}, workspace.bytes()));
}
