// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"
#include "support/forward_oracle.hpp"
#include "support/plain_tensors.hpp"

using namespace blockattn;
using namespace blockattn_test;

namespace {

constexpr tile_shape coarse = {};
constexpr tile_shape fine = {1, 1};  // see cuda_backend

attention_case plain_case(const attention_mask& mask,
                          index_t head_dim,
                          index_t value_dim,
                          const tile_shape& tiles = coarse) {
  attention_case c;
  c.kind = "plain";
  c.masks = {mask, tiles};
  c.head_dim = head_dim;
  c.value_dim = value_dim;
  return c;
}

template <class T>
void check_plain(const attention_case& c) {
  check_forward_case<T, T, T, T>(cuda_backend{}, c);
}

/// Queries of type Q with keys and values of type T against the same queries, rounded to T.
template <class Q, class T, class O>
void check_rounded_queries(std::uint64_t default_seed, int count) {
  const std::uint64_t seed = test_seed(default_seed);
  for (int i = 0; i < count; ++i) {
    const attention_case c = random_attention_case(seed + static_cast<std::uint64_t>(i));
    INFO(c.describe());
    const attention_tensors<Q, T, T, O> mixed(c);
    const attention_tensors<T, T, T, O> rounded(c);
    const auto from = mixed.q.view();
    for (index_t token = 0; token < from.tokens; ++token) {
      for (index_t head = 0; head < from.heads; ++head) {
        const Q* const row = from.row(token, head);
        T* const to = rounded.q.view().row(token, head);
        for (index_t t = 0; t < from.head_dim; ++t) store_scalar(to[t], load_scalar(row[t]));
      }
    }
    cuda_backend{}.forward(mixed.arguments(), c.masks, c.options);
    cuda_backend{}.forward(rounded.arguments(), c.masks, c.options);
    CHECK(mixed.o.same_bits(rounded.o));
    if (c.with_lse) CHECK(mixed.lse.same_bits(rounded.lse));
    CHECK(mixed.margins_untouched());
  }
}

}  // namespace

TEST_CASE("cuda::forward equals the reference in bf16") {
  if (skips_without_device()) return;
  check_random_cases<bfloat16, bfloat16, bfloat16, bfloat16>(cuda_backend{}, 3000, 40);
}

TEST_CASE("cuda::forward equals the reference in fp16") {
  if (skips_without_device()) return;
  check_random_cases<float16, float16, float16, float16>(cuda_backend{}, 7000, 30);
}

TEST_CASE("cuda::forward equals the reference in fp32") {
  if (skips_without_device()) return;
  check_random_cases<float, float, float, float>(cuda_backend{}, 9000, 30);
}

TEST_CASE("cuda::forward with queries in another format gives the bits of rounded ones") {
  if (skips_without_device()) return;
  check_rounded_queries<float, bfloat16, bfloat16>(10000, 10);
  check_rounded_queries<float, bfloat16, float>(11000, 5);
  check_rounded_queries<float, float16, float16>(12000, 10);
  check_rounded_queries<float16, bfloat16, bfloat16>(13000, 10);
  check_rounded_queries<bfloat16, float16, bfloat16>(14000, 10);
  check_rounded_queries<bfloat16, float, float>(15000, 10);
}

TEST_CASE("cuda::forward equals the reference with outputs in other formats") {
  if (skips_without_device()) return;
  check_random_cases<bfloat16, bfloat16, bfloat16, float>(cuda_backend{}, 4000, 10);
  check_random_cases<float16, float16, float16, float>(cuda_backend{}, 5000, 10);
  check_random_cases<float16, float16, float16, bfloat16>(cuda_backend{}, 6000, 10);
  check_random_cases<float, float, float, bfloat16>(cuda_backend{}, 6500, 10);
}

TEST_CASE("cuda::forward equals the reference over long ragged blocks") {
  if (skips_without_device()) return;
  case_limits limits;
  limits.max_block = 250;
  limits.head_dims = {64, 128};
  check_random_cases<bfloat16, bfloat16, bfloat16, bfloat16>(cuda_backend{}, 8000, 12, limits);
}

TEST_CASE("cuda::forward equals the reference around fragment and tile widths") {
  if (skips_without_device()) return;
  for (const index_t n : {1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 193, 257}) {
    for (const index_t dim : {64, 128, 256}) {
      check_plain<bfloat16>(plain_case(causal_mask(n), dim, dim));
      check_plain<bfloat16>(plain_case(causal_mask(n), dim, dim, fine));
      check_plain<float>(plain_case(causal_mask(n), dim, dim));
      check_plain<float16>(plain_case(full_mask(3, n), dim, dim));
      check_plain<bfloat16>(plain_case(full_mask(n, 3), dim, dim));
      // Without the first and the last key.
      const slice inner = {.queries = {0, n}, .keys = {1, std::max<index_t>(1, n - 1)}};
      check_plain<bfloat16>(
          plain_case(attention_mask::from_disjoint_slices(n, n, {inner}), dim, dim));
    }
  }
}

TEST_CASE("cuda::forward equals the reference for every head dim") {
  if (skips_without_device()) return;
  for (index_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    check_plain<bfloat16>(plain_case(causal_mask(70), head_dim, 264 - head_dim));
    check_plain<float16>(plain_case(causal_mask(70), head_dim, head_dim));
    check_plain<float>(plain_case(causal_mask(70), head_dim, 264 - head_dim));
  }
}

TEST_CASE("cuda::forward equals the reference when it cuts rows of tiles") {
  if (skips_without_device()) return;
  // One head over 3,000 keys: 47 tiles for the last rows, cut at 16.
  for (const index_t dim : {64, 128, 256}) {
    attention_case c = plain_case(block_attention_mask(layout_of({900, 700, 1270, 130})), dim, dim);
    check_plain<bfloat16>(c);
    check_plain<float>(c);
    c.masks = {sink_window_mask(3000, 3, 1500), {}};
    c.with_sink_logits = true;
    c.options.softcap = 8;
    check_plain<float16>(c);
    c.masks.shapes = {fine};
    check_plain<float16>(c);
    c.masks = {causal_mask(17, 3000), {}};
    c.query_heads = 3;
    check_plain<float16>(c);
  }
}
