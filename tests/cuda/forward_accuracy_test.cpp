// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"
#include "support/accuracy.hpp"

using namespace blockattn_test;

namespace {

constexpr plain_sizes one_head_64 = {
    .query_heads = 1, .kv_heads = 1, .head_dim = 64, .value_dim = 64};
constexpr plain_sizes one_head_128 = {
    .query_heads = 1, .kv_heads = 1, .head_dim = 128, .value_dim = 128};

named_mask causal_of(index_t tokens) { return {"causal", causal_mask(tokens)}; }
named_mask blocks_of(index_t tokens) {
  return {"block attention",
          block_attention_mask(layout_of({tokens / 2, tokens / 8, tokens / 5,
                                          tokens - tokens / 2 - tokens / 8 - tokens / 5}))};
}

template <class T>
void check(std::uint64_t default_seed,
           const named_mask& mask,
           const plain_sizes& sizes,
           const plain_options<T>& options = {}) {
  check_forward_accuracy<T>(cuda_backend{}, test_seed(default_seed), mask, sizes, options);
}

}  // namespace

TEMPLATE_TEST_CASE("cuda::forward is as accurate as its contract", "", float16, bfloat16, float) {
  if (skips_without_device()) return;
  check<TestType>(1, causal_of(64), one_head_128);
  check<TestType>(2, blocks_of(257), one_head_128);
  check<TestType>(3, {"full", full_mask(257, 257)}, one_head_64);
  check<TestType>(4, causal_of(1024), one_head_64);
  check<TestType>(5, blocks_of(1100), one_head_128);
  check<TestType>(6, {"sliding window", sliding_window_mask(1024, 100)}, one_head_64);
  check<TestType>(7, {"sinks and window", sink_window_mask(1500, 4, 60)}, one_head_128);
}

TEMPLATE_TEST_CASE(
    "cuda::forward is accurate with softcap and sink logits", "", float16, bfloat16, float) {
  if (skips_without_device()) return;
  check<TestType>(8, causal_of(1024), one_head_64, {.attention = {.softcap = 5}});
  check<TestType>(9, causal_of(300), one_head_128, {.sink_logits = {1}});
}
