// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/tile_shape.hpp>

#include "cpu/cpu_backend.hpp"
#include "support/example_cases.hpp"
#include "support/naive_gradient.hpp"

using namespace blockattn_test;

namespace {

template <class T>
void check(std::uint64_t default_seed,
           const named_mask& mask,
           const plain_sizes& sizes,
           plain_options<T> options = {},
           double score_deviation = 1) {
  options.tiles = cpu::tile_shape_for<T>(sizes.head_dim);
  check_backward_accuracy<T>(cpu_backend{}, test_seed(default_seed), mask, sizes, options,
                             score_deviation);
}

}  // namespace

TEMPLATE_TEST_CASE("cpu::backward is as accurate as its contract", "", float, bfloat16, double) {
  check<TestType>(1, causal_of(64), two_heads_128);
  check<TestType>(2, blocks_of(257), two_heads_128);
  check<TestType>(3, causal_of(1024), one_head_64);
  check<TestType>(4, blocks_of(1100), one_head_128);
  check<TestType>(5, {"sliding window", sliding_window_mask(1024, 100)}, one_head_64);
}

TEMPLATE_TEST_CASE(
    "cpu::backward is accurate with softcap and sink logits", "", float, bfloat16, double) {
  check<TestType>(6, causal_of(1024), one_head_64, {.attention = {.softcap = 5}});
  check<TestType>(7, causal_of(300), two_heads_128, {.sink_logits = {1, -2}});
}

TEMPLATE_TEST_CASE(
    "cpu::backward is accurate where scores are large", "", float, bfloat16, double) {
  for (const double score_deviation : {10.0, 30.0, 100.0}) {
    check<TestType>(10, causal_of(1024), one_head_64, {}, score_deviation);
  }
  check<TestType>(11, blocks_of(300), two_heads_128, {}, 20);
  check<TestType>(12, causal_of(300), one_head_64, {.attention = {.softcap = 50}}, 30);
  check<TestType>(13, causal_of(300), one_head_64, {.sink_logits = {30}}, 20);
}
