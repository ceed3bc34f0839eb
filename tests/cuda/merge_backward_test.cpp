// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_rows.hpp"
#include "support/forward_errors.hpp"
#include "support/merge_problem.hpp"

using namespace blockattn_test;

TEST_CASE("cuda::merge_backward is the formula, for every storage, size and kind of state") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(510);
  CAPTURE(seed);
  random_source random(seed);
  for (const bool hostile : {true, false}) {
    for (const index_t tokens : {0, 1, 16, 37}) {
      for (const index_t dim : {0, 1, 7, 8, 9, 16, 40, 63, 64, 65, 128, 136, 256, 264, 300}) {
        const merge_sizes sizes = {random.integer(0, 5), tokens, random.integer(1, 3), dim,
                                   hostile};
        check_merge_backward_formulas<float, float, float>(cuda_rows{}, random, sizes, 4e-6);
        check_merge_backward_formulas<bfloat16, bfloat16, bfloat16>(cuda_rows{}, random, sizes,
                                                                    4e-6);
        check_merge_backward_formulas<float16, float16, float16>(cuda_rows{}, random, sizes, 4e-6);
        check_merge_backward_formulas<float16, float, bfloat16>(cuda_rows{}, random, sizes, 4e-6);
      }
    }
  }
}

TEST_CASE("cuda::merge_backward takes any number of states, and more tokens than threads") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(511);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t states : {15, 16, 17, 31, 32, 33, 64, 100}) {
    for (const index_t dim : {8, 40, 64, 256}) {
      const merge_sizes sizes = {states, 5, 3, dim, random.chance(0.5)};
      check_merge_backward_formulas<float, float, float>(cuda_rows{}, random, sizes, 4e-6);
    }
  }
  check_merge_backward_formulas<float, float, float>(
      cuda_rows{}, random, {.states = 2, .tokens = 2500, .heads = 2, .value_dim = 8}, 4e-6);
}

TEST_CASE("cuda::merge_backward leaves out what is not wanted, and gives the same bits each time") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(512);
  CAPTURE(seed);
  random_source random(seed);
  merge_problem<float> problem(random, {.states = 3, .tokens = 20, .heads = 2, .value_dim = 40});
  problem.sink_logits = {0.25F, -0.5F};
  problem.states[1].row_log_weights = problem.row_log_weights[1].as_lse();
  random_source layouts(seed);
  const auto all = problem.differentiate(cuda_rows{}, layouts);
  random_source again(seed);
  const auto repeated = problem.differentiate(cuda_rows{}, again);
  CHECK(repeated.d_sink_logits == all.d_sink_logits);
  for (std::size_t s = 0; s < 3; ++s) {
    CHECK(repeated.d_o[s].same_bits(all.d_o[s]));
    CHECK(repeated.d_lse[s].same_bits(all.d_lse[s]));
    CHECK(repeated.d_row_log_weights[s].same_bits(all.d_row_log_weights[s]));
  }

  // One part of each state, each of another kind.
  std::vector<float> d_o(20 * 2 * 40), d_row(20 * 2), d_lse(20 * 2);
  const partial_state_gradient<float> wanted[] = {
      {.d_o = token_major(d_o.data(), 20, 2, 40)},
      {.d_row_log_weights = token_major_lse(d_row.data(), 20, 2)},
      {.d_lse = token_major_lse(d_lse.data(), 20, 2)}};
  const merge_backward_arguments<float> arguments = {.states = problem.states,
                                                     .d_o = problem.d_o.view(),
                                                     .d_lse = problem.d_lse.as_lse(),
                                                     .gradients = wanted,
                                                     .sink_logits = problem.sink_logits};
  cuda_rows{}.merge_backward(arguments);
  problem.for_each_row([&](index_t token, index_t head) {
    CHECK(std::equal(wanted[0].d_o.row(token, head), wanted[0].d_o.row(token, head) + 40,
                     all.d_o[0].view().row(token, head)));
    CHECK(wanted[1].d_row_log_weights.at(token, head) ==
          all.d_row_log_weights[1].as_lse().at(token, head));
    CHECK(wanted[2].d_lse.at(token, head) == all.d_lse[2].as_lse().at(token, head));
  });

  // Without d_lse it counts as 0.
  merge_backward_arguments<float> without = arguments;
  without.d_lse = {};
  cuda_rows{}.merge_backward(without);
  problem.for_each_row(
      [&](index_t token, index_t head) { problem.d_lse.as_lse().at(token, head) = 0; });
  const auto zero = problem.differentiate(cuda_rows{}, again);
  problem.for_each_row([&](index_t token, index_t head) {
    CHECK(wanted[2].d_lse.at(token, head) == zero.d_lse[2].as_lse().at(token, head));
  });
}

TEST_CASE("cuda::merge_backward: sinks get 0 from a call without tokens") {
  if (skips_without_device()) return;
  random_source random(test_seed(513));
  merge_problem<float> problem(random, {.states = 1, .tokens = 0, .heads = 2, .value_dim = 8});
  problem.sink_logits = {0.25F, -0.5F};
  const auto found = problem.differentiate(cuda_rows{}, random);
  CHECK(found.d_sink_logits == std::vector<float>{0, 0});
}

TEST_CASE("cuda::merge_backward refuses every bad argument in a sentence") {
  std::vector<float> inputs(3 * 5 * 4 * 16), outputs(2 * 5 * 4 * 16, -1);
  const auto view = [](std::vector<float>& memory, index_t part) {
    return token_major(memory.data() + part * 320, 5, 4, 16);
  };
  using arguments = merge_backward_arguments<float>;
  using gradients = std::vector<partial_state_gradient<float>>;
  const auto sentence = [&](const auto& spoil, std::size_t count = 1) {
    const std::vector<partial_state<float>> states(
        count, {.o = view(inputs, 0), .lse = token_major_lse<const float>(inputs.data(), 5, 4)});
    gradients into(count);
    into[0].d_o = view(outputs, 0);
    arguments call = {.states = states,
                      .d_o = view(inputs, 1),
                      .gradients = into,
                      .sink_logits = std::span<const float>(inputs).first(4),
                      .d_sink_logits = std::span<float>(outputs).last(4)};
    spoil(call, into);
    return sentence_of([&] { cuda_rows{.on_device = false}.merge_backward(call); });
  };
  CHECK(sentence([](arguments& a, gradients&) { a.d_o.data = nullptr; }) ==
        "cuda::merge_backward: d_o.data is null but its size is (5, 4, 16)");
  CHECK(sentence([](arguments& a, gradients&) { a.sink_logits = {}; }) ==
        "cuda::merge_backward: 4 d_sink_logits for 0 sink_logits");
  CHECK(sentence([](arguments& a, gradients&) { a.sink_logits = a.sink_logits.first(3); }) ==
        "cuda::merge_backward: 3 sink_logits for 4 query heads");
  CHECK(sentence([](arguments& a, gradients&) { a.gradients = {}; }) ==
        "cuda::merge_backward: 0 gradients for 1 states");
  CHECK(sentence([](arguments&, gradients& g) { g[0].d_o.heads = 3; }) ==
        "cuda::merge_backward: state 0: d_o is (5, 3, 16) but the gradient of the result is (5, 4, "
        "16)");
  CHECK(sentence([&](arguments&, gradients& g) {
          g[0].d_o.data = inputs.data();
        }).starts_with("cuda::merge_backward: state 0: d_o and sink_logits overlap in memory"));
  CHECK(sentence([](arguments&, gradients&) {}) ==
        "cuda::merge_backward: workspace has 0 bytes, needs 128");
  CHECK(sentence([](arguments& a, gradients&) { a.d_sink_logits = {}; }, 17) ==
        "cuda::merge_backward: workspace has 0 bytes, needs 2880");
  CHECK(std::count(outputs.begin(), outputs.end(), -1.0F) == std::ssize(outputs));
}
