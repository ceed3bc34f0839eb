// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "cuda/cuda_attend.hpp"
#include "support/attend_examples.hpp"
#include "support/attend_oracle.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

/// Right within the bound, nothing else written, same bits a second time.
template <class T, class O>
void check_case_as_it_is(const attend_case& c) {
  CAPTURE(c.describe(), c.hostile_layouts);
  const attend_tensors<T, T, T, O> once(c);
  attend_on_device(once.arguments(), once.options());
  // Tensor cores add 16 products at a time without rounding each as fp32 would: sums are allowed
  // 4 times its unit roundoff. ex2.approx is off by 2^-22, which the 8 units of the bound hold.
  const attend_rounding rounding{
      .accumulator = 4, .weight = unit_roundoff<T>(), .turned_query = unit_roundoff<T>()};
  CHECK(largest_attend_error(once.arguments(), once.options(), rounding) <= 1);
  CHECK(once.others_untouched());

  const attend_tensors<T, T, T, O> again(c);
  attend_on_device(again.arguments(), again.options());
  const auto& a = once.arguments();
  const auto& b = again.arguments();
  bool same = true;
  for (index_t token = 0; token < a.o.tokens; ++token) {
    for (index_t head = 0; head < a.o.heads; ++head) {
      const auto bytes = static_cast<std::size_t>(a.o.head_dim) * sizeof(O);
      same = same && std::memcmp(a.o.row(token, head), b.o.row(token, head), bytes) == 0;
      same =
          same && (!a.lse || std::memcmp(&a.lse.at(token, head), &b.lse.at(token, head), 4) == 0);
    }
  }
  CHECK(same);
}

/// In rows of any alignment, and in rows that are copied in chunks of 16 bytes.
template <class T, class O>
void check_case(attend_case c) {
  check_case_as_it_is<T, O>(c);
  c.hostile_layouts = false;
  check_case_as_it_is<T, O>(c);
}

template <class T, class O>
void check_cases(const std::vector<attend_case>& cases) {
  for (const attend_case& c : cases) check_case<T, O>(c);
}

template <class T, class O>
void check_random_cases(std::uint64_t default_seed, int count) {
  const std::uint64_t seed = test_seed(default_seed);
  for (int i = 0; i < count; ++i) {
    check_case<T, O>(random_attend_case(seed + static_cast<std::uint64_t>(i)));
  }
}

}  // namespace

TEST_CASE("cuda::attend_blocks equals its formula on random calls", "[attend_blocks]") {
  if (skips_without_device()) return;
  check_random_cases<bfloat16, bfloat16>(3000, 60);
  check_random_cases<bfloat16, float>(3500, 60);
  check_random_cases<float16, float16>(4000, 60);
}

TEST_CASE("cuda::attend_blocks takes every head dimension and GQA ratio", "[attend_blocks]") {
  if (skips_without_device()) return;
  check_cases<bfloat16, bfloat16>(attend_head_dims());
  check_cases<float16, float16>(attend_gqa_ratios());
}

TEST_CASE("cuda::attend_blocks around the sizes of its tiles", "[attend_blocks]") {
  if (skips_without_device()) return;
  // Row tiles of 16, 64 and 128, key tiles of 128 and 64.
  check_cases<bfloat16, float>(attend_sizes_of({1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300},
                                               {1, 63, 64, 65, 127, 128, 129}));
  check_cases<bfloat16, float>(attend_sizes_of({2, 70}, {511, 512, 513, 9000}));
}

TEST_CASE("cuda::attend_blocks with nothing to do or nothing to see", "[attend_blocks]") {
  if (skips_without_device()) return;
  check_cases<bfloat16, bfloat16>(attend_empty());
}

TEST_CASE("cuda::attend_blocks over a few blocks and pages", "[attend_blocks]") {
  if (skips_without_device()) return;
  for (const index_t queries : {1, 40}) {
    attend_case c{.seed = test_seed(8700),
                  .query_tokens = queries,
                  .query_heads = 4,
                  .kv_heads = 1,
                  .head_dim = 128,
                  .value_dim = 128,
                  .sequences = {{.queries = {0, queries},
                                 .segments = {{.keys = 700}, {.keys = 40, .query_shift = -9}},
                                 .tail = {.keys = queries}}}};
    for (int page = 0; page < 9; ++page) c.sequences[0].segments.push_back({.keys = 16});
    check_case<bfloat16, bfloat16>(c);
  }
}

TEST_CASE("cuda::attend_blocks cuts many pages under different shifts", "[attend_blocks]") {
  if (skips_without_device()) return;
  for (const index_t queries : {1, 3, 40, 70}) {
    attend_case c{.seed = test_seed(8600),
                  .query_tokens = queries,
                  .query_heads = 8,
                  .kv_heads = 2,
                  .head_dim = 128,
                  .value_dim = 128,
                  .sequences = {{.queries = {0, queries}, .tail = {.keys = queries + 7}}}};
    for (int page = 0; page < 120; ++page) {
      c.sequences[0].segments.push_back(
          {.keys = page % 5 == 4 ? 3 : 16, .query_shift = -100.0 * (page / 40)});
    }
    check_case<bfloat16, float>(c);
    // More than a kernel's parameters hold.
    for (int page = 0; page < 150; ++page) {
      c.sequences[0].segments.push_back({.keys = 2, .query_shift = -10.0 * page});
    }
    check_case<bfloat16, bfloat16>(c);
  }
}

TEST_CASE("cuda::attend_blocks refuses bad calls before it enqueues", "[attend_blocks]") {
  const attend_case c{.query_tokens = 3,
                      .query_heads = 2,
                      .sequences = {{.queries = {0, 3},
                                     .segments = std::vector<segment_shape>(300, {.keys = 20})}}};
  const attend_tensors<bfloat16, bfloat16, bfloat16, bfloat16> tensors(c);
  const auto arguments = tensors.arguments();
  CHECK_NOTHROW(refused_attend(arguments, tensors.options()));
  CHECK_THROWS_WITH(refused_attend(arguments, tensors.options(), 1),
                    contains("cuda::attend_blocks: workspace has "));
  CHECK_THROWS_WITH(refused_attend(arguments, tensors.options(), 0, 1),
                    contains("cuda::attend_blocks: staging has "));
  CHECK_THROWS_WITH(refused_attend(arguments, tensors.options(), 0, 0, 8),
                    contains("cuda::attend_blocks: staging is 8 bytes past a multiple of 16"));
  CHECK_THROWS_WITH(refused_attend(arguments, {.softcap = -1}), contains("options.softcap is -1"));
  auto with_dims = arguments;
  with_dims.q.head_dim = 12;
  CHECK_THROWS_WITH(refused_attend(with_dims, {}), contains("head_dim"));
  auto with_scale = arguments;
  std::vector<key_segment<bfloat16>> segments(arguments.sequences[0].segments.begin(),
                                              arguments.sequences[0].segments.end());
  segments[0].score_scale = 1e30;
  const std::vector<attend_sequence<bfloat16>> sequences = {
      {.queries = {0, 3}, .segments = segments}};
  with_scale.sequences = sequences;
  CHECK_THROWS_WITH(refused_attend(with_scale, {.scale = 1e30}),
                    contains("is beyond the accumulator"));
  const std::vector<float> sinks(3);
  auto with_sinks = arguments;
  with_sinks.sink_logits = sinks;
  CHECK_THROWS_WITH(refused_attend(with_sinks, {}), contains("3 sink_logits for 2 query heads"));
  CHECK(tensors.outputs_untouched());
}
