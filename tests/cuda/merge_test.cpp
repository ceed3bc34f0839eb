// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "cuda/cuda_backend.hpp"
#include "cuda/cuda_rows.hpp"
#include "support/forward_errors.hpp"
#include "support/merge_problem.hpp"

using namespace blockattn_test;

namespace {

/// The result of a merge, token-major.
template <class O>
struct merged_rows {
  std::vector<O> o;
  std::vector<float> lse;

  bool operator==(const merged_rows& other) const {
    return std::memcmp(o.data(), other.o.data(), o.size() * sizeof(O)) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
};

template <class P>
merged_rows<P> merged(const merge_problem<P>& problem,
                      const std::vector<partial_state<P>>& states) {
  const merge_sizes& s = problem.sizes;
  merged_rows<P> result{
      std::vector<P>(static_cast<std::size_t>(s.tokens * s.heads * s.value_dim)),
      std::vector<float>(static_cast<std::size_t>(s.tokens * s.heads), std::nanf(""))};
  cuda_rows{}.merge(
      merge_arguments<P>{.states = states,
                         .o = token_major(result.o.data(), s.tokens, s.heads, s.value_dim),
                         .lse = token_major_lse(result.lse.data(), s.tokens, s.heads),
                         .sink_logits = problem.sink_logits});
  return result;
}

}  // namespace

TEST_CASE("cuda::merge is the formula, for every storage, size and kind of state") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(500);
  CAPTURE(seed);
  random_source random(seed);
  for (const bool hostile : {true, false}) {
    for (const index_t tokens : {0, 1, 16, 37}) {
      for (const index_t dim : {0, 1, 7, 8, 9, 16, 40, 63, 64, 65, 128, 136, 256, 264, 300}) {
        const merge_sizes sizes = {random.integer(0, 5), tokens, random.integer(1, 3), dim,
                                   hostile};
        check_merge_formulas<float, float>(cuda_rows{}, random, sizes, 4e-6);
        check_merge_formulas<bfloat16, bfloat16>(cuda_rows{}, random, sizes, 4e-6);
        check_merge_formulas<float16, float16>(cuda_rows{}, random, sizes, 4e-6);
        check_merge_formulas<float16, float>(cuda_rows{}, random, sizes, 4e-6);
        check_merge_formulas<float, bfloat16>(cuda_rows{}, random, sizes, 4e-6);
      }
    }
  }
}

TEST_CASE("cuda::merge takes any number of states") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(501);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t states : {15, 16, 17, 31, 32, 33, 64, 65, 150}) {
    for (const index_t dim : {8, 40, 64, 256}) {
      const merge_sizes sizes = {states, 5, 3, dim, random.chance(0.5)};
      check_merge_formulas<bfloat16, bfloat16>(cuda_rows{}, random, sizes, 4e-6);
      check_merge_formulas<float, float>(cuda_rows{}, random, sizes, 4e-6);
    }
  }
}

TEST_CASE("cuda::merge: one state merges to itself, and absent states change no bit") {
  if (skips_without_device()) return;
  random_source random(test_seed(502));
  const merge_problem<bfloat16> problem(random,
                                        {.states = 3, .tokens = 20, .heads = 3, .value_dim = 72});
  merge_problem<bfloat16> absent(random, problem.sizes);
  for (std::size_t s = 0; s < absent.states.size(); ++s) {
    absent.for_each_row([&](index_t token, index_t head) {
      absent.lse[s].as_lse().at(token, head) = -infinity<float>;
      std::fill_n(absent.o[s].view().row(token, head), 72, bfloat16{0x7fc0});
    });
  }
  const auto& here = problem.states;
  const auto& gone = absent.states;
  const auto all = merged(problem, here);
  CHECK(merged(problem, {gone[0], here[0], gone[1], here[1], here[2], gone[2]}) == all);

  const auto one = merged(problem, {gone[0], here[1]});
  problem.for_each_row([&](index_t token, index_t head) {
    const index_t row = token * 3 + head;
    CHECK(one.lse[static_cast<std::size_t>(row)] == here[1].lse.at(token, head));
    CHECK(std::memcmp(&one.o[static_cast<std::size_t>(row * 72)], here[1].o.row(token, head),
                      72 * sizeof(bfloat16)) == 0);
  });
  const auto nothing = merged(problem, gone);
  CHECK(nothing == merged(problem, {}));
  for (const bfloat16 value : nothing.o) CHECK(load_scalar(value) == 0);
  for (const float lse : nothing.lse) CHECK(lse == -infinity<float>);
}

TEST_CASE("cuda::merge may write over any of its states, and gives the same bits each time") {
  if (skips_without_device()) return;
  const std::uint64_t seed = test_seed(503);
  CAPTURE(seed);
  const merge_sizes sizes = {.states = 3, .tokens = 20, .heads = 3, .value_dim = 300};
  const auto problem_of_seed = [&] {
    random_source random(seed);
    merge_problem<float> problem(random, sizes);
    problem.vary(random);
    return problem;
  };
  const merge_problem<float> apart = problem_of_seed();
  const auto expected = merged(apart, apart.states);
  CHECK(merged(apart, apart.states) == expected);
  for (std::size_t s = 0; s < 3; ++s) {
    CAPTURE(s);
    const merge_problem<float> problem = problem_of_seed();
    cuda_rows{}.merge(merge_arguments<float>{.states = problem.states,
                                             .o = problem.o[s].view(),
                                             .lse = problem.lse[s].as_lse(),
                                             .sink_logits = problem.sink_logits});
    merged_rows<float> found;
    problem.for_each_row([&](index_t token, index_t head) {
      const float* const row = problem.o[s].view().row(token, head);
      found.o.insert(found.o.end(), row, row + sizes.value_dim);
      found.lse.push_back(problem.lse[s].as_lse().at(token, head));
    });
    CHECK(found == expected);
  }
}

TEST_CASE("cuda::merge without lse writes o alone") {
  if (skips_without_device()) return;
  random_source random(test_seed(504));
  const merge_problem<float> problem(random,
                                     {.states = 2, .tokens = 9, .heads = 2, .value_dim = 24});
  const auto expected = merged(problem, problem.states);
  std::vector<float> o(expected.o.size());
  cuda_rows{}.merge(
      merge_arguments<float>{.states = problem.states, .o = token_major(o.data(), 9, 2, 24)});
  CHECK(o == expected.o);
}

TEST_CASE("cuda::merge refuses every bad argument in a sentence") {
  const std::vector<float> inputs(5 * 4 * 16);
  std::vector<float> memory(5 * 4 * 17, -1);
  const partial_state<float> state = {.o = token_major<const float>(inputs.data(), 5, 4, 16),
                                      .lse = token_major_lse<const float>(inputs.data(), 5, 4)};
  // Of what check_merge refuses, one of each place; then what only a device refuses.
  const auto sentence = [&](const auto& spoil, std::size_t count = 2) {
    std::vector<partial_state<float>> states(count, state);
    merge_arguments<float> arguments = {.states = states,
                                        .o = token_major(memory.data(), 5, 4, 16),
                                        .lse = token_major_lse(memory.data() + 320, 5, 4),
                                        .sink_logits = std::span<const float>(inputs).first(4)};
    spoil(arguments, states);
    return sentence_of([&] { cuda_rows{.on_device = false}.merge(arguments); });
  };
  using arguments = merge_arguments<float>;
  using states = std::vector<partial_state<float>>;
  CHECK(sentence([](arguments& a, states&) { a.o.head_stride = 8; }) ==
        "cuda::merge: rows of o overlap: head_dim 16, token_stride 64, head_stride 8");
  CHECK(sentence([](arguments& a, states&) { a.lse.tokens = 4; }) ==
        "cuda::merge: lse is (4, 4) but there are (5, 4) query tokens and heads");
  CHECK(sentence([](arguments& a, states&) { a.sink_logits = a.sink_logits.first(3); }) ==
        "cuda::merge: 3 sink_logits for 4 query heads");
  CHECK(sentence([](arguments&, states& s) { s[1].o.heads = 3; }) ==
        "cuda::merge: state 1: o is (5, 3, 16) but the result is (5, 4, 16)");
  CHECK(sentence([](arguments&, states& s) { s[1].lse = {}; }) ==
        "cuda::merge: state 1: lse is missing");
  CHECK(sentence([](arguments&, states& s) {
          s[0].log_weight = 1e300;
        }).starts_with("cuda::merge: state 0: log_weight_scale 1 must be finite"));
  CHECK(sentence([](arguments&, states&) {}, 33) ==
        "cuda::merge: workspace has 0 bytes, needs 2904");
  CHECK(sentence([](arguments& a, states& s) {
          a.o = {a.o.data, index_t{1} << 31, 1, 16, 16, 16};
          a.lse = {};
          a.sink_logits = {};
          a.states = std::span<const partial_state<float>>(s).first(0);
        }) == "cuda::merge: (2147483648, 1, 16) is more than a launch takes");
  CHECK(std::count(memory.begin(), memory.end(), -1.0F) == std::ssize(memory));
}
