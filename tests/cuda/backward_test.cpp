// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/as_bf16.hpp"
#include "cuda/cuda_backend.hpp"
#include "support/backward_errors.hpp"
#include "support/backward_oracle.hpp"

using namespace blockattn;
using namespace blockattn_test;

namespace {

const std::vector<index_t> head_dims = {8, 16, 24, 40, 64, 72, 80, 96, 128, 136, 192, 256};

attention_case plain_case(const attention_mask& mask, index_t head_dim, index_t value_dim) {
  attention_case c;
  c.kind = "plain";
  c.masks = {mask, {}};
  c.head_dim = head_dim;
  c.value_dim = value_dim;
  return c;
}

const cuda_backend backends[] = {{}, {.deterministic = true}};

template <class T>
void check_plain(const attention_case& c) {
  for (const cuda_backend& backend : backends) check_backward_case<T, T, T, T>(backend, c);
}

/// Random cases in both modes.
template <class T, class Gradient = T>
void check_random(std::uint64_t first_seed, int count) {
  case_limits limits;
  limits.head_dims = head_dims;
  for (const cuda_backend& backend : backends) {
    check_random_backward_cases<T, T, T, T, Gradient, Gradient, Gradient>(backend, first_seed,
                                                                          count, limits);
  }
}

}  // namespace

TEST_CASE("cuda::backward equals the reference in bf16") {
  if (skips_without_device()) return;
  check_random<bfloat16>(3000, 40);
}

TEST_CASE("cuda::backward equals the reference in fp16") {
  if (skips_without_device()) return;
  check_random<float16>(7000, 40);
}

TEST_CASE("cuda::backward equals the reference in fp32") {
  if (skips_without_device()) return;
  check_random<float>(9000, 40);
}

TEST_CASE("cuda::backward equals the reference in bf16 with fp32 gradients") {
  if (skips_without_device()) return;
  check_random<bfloat16, float>(4000, 30);
}

TEST_CASE("cuda::backward equals the reference around fragment and tile widths") {
  if (skips_without_device()) return;
  for (const index_t n : {1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129}) {
    for (const index_t dim : {64, 128, 256}) {
      check_plain<bfloat16>(plain_case(causal_mask(n), dim, dim));
      check_plain<float16>(plain_case(full_mask(3, n), dim, dim));
      check_plain<bfloat16>(plain_case(full_mask(n, 3), dim, dim));
      check_plain<float>(plain_case(causal_mask(n), dim, dim));
    }
  }
}

TEST_CASE("cuda::backward equals the reference over several blocks and heads") {
  if (skips_without_device()) return;
  attention_case c = plain_case(block_attention_mask(layout_of({100, 7, 250, 0, 90, 40})), 128, 64);
  c.query_heads = 6;
  c.kv_heads = 2;
  c.with_sink_logits = true;
  check_plain<bfloat16>(c);
  check_plain<float>(c);
  c.options.softcap = 8;
  check_plain<bfloat16>(c);
  check_plain<float>(c);
}

TEST_CASE("cuda::backward equals the reference where scores lie far below 0") {
  if (skips_without_device()) return;
  // Behind the last key a tile holds zeros, whose weights, were they not hidden, would overflow.
  attention_case c = plain_case(full_mask(3, 1), 64, 64);
  c.query_heads = c.kv_heads = 16;
  c.options.scale = 30;
  check_plain<bfloat16>(c);
  check_plain<float16>(c);
  check_plain<float>(c);
}

TEST_CASE("cuda::backward equals the reference for head dims beyond 128") {
  if (skips_without_device()) return;
  struct dims {
    index_t keys, values;
  };
  for (const dims& d : {dims{136, 136}, {136, 8}, {8, 136}, {192, 128}, {128, 192}, {256, 256}}) {
    attention_case c =
        plain_case(block_attention_mask(layout_of({70, 31, 130, 33})), d.keys, d.values);
    c.query_heads = 4;
    c.kv_heads = 2;
    check_plain<bfloat16>(c);
    c.options.softcap = 10;
    c.with_sink_logits = true;
    check_plain<float16>(c);
    check_plain<float>(c);
  }
}

TEST_CASE("cuda::backward gives the same bits each time where it is deterministic") {
  if (skips_without_device()) return;
  for (const index_t dim : {64, 256}) {
    attention_case c = plain_case(block_attention_mask(layout_of({300, 170, 500, 60})), dim, dim);
    c.query_heads = 4;
    c.kv_heads = 2;
    c.with_sink_logits = true;
    backward_tensors<bfloat16, bfloat16, bfloat16, bfloat16> first(c);
    constexpr cuda_backend backend{.deterministic = true};
    backend.backward(first.arguments(), c.masks, c.options);
    for (int run = 0; run < 5; ++run) {
      backward_tensors<bfloat16, bfloat16, bfloat16, bfloat16> again(c);
      backend.backward(again.arguments(), c.masks, c.options);
      CHECK(again.same_bits(first));
    }
  }
}

TEST_CASE("cuda::backward refuses every bad argument in a sentence") {
  const auto plan_of = [](const tile_shape& shape, bool transposed) {
    return make_tile_plan(full_mask(valid_call::query_tokens, valid_call::key_tokens), shape,
                          {.transposed = transposed});
  };
  const tile_plan plan = plan_of({64, 64}, true);
  for (const backward_error& expected : backward_errors()) {
    if (expected.sentence.starts_with("sink_logits[")) continue;  // values on the device
    valid_backward_call valid;
    backward_arguments<float> arguments = valid.arguments();
    attention_options options;
    expected.spoil(arguments, options);
    CHECK(sentence_of([&] { refused_backward(as_bf16(arguments), plan, 4, options); }) ==
          "cuda::backward: " + expected.sentence);
    CHECK(valid.outputs_untouched());
  }
  valid_backward_call valid;
  const auto sentence = [&](const tile_plan& other, index_t heads) {
    return sentence_of([&] { refused_backward(as_bf16(valid.arguments()), other, heads); });
  };
  CHECK(sentence(plan, 4) == "no error");
  CHECK(sentence(plan, 2) == "cuda::backward: the plan is for 2 query heads but q has 4");
  CHECK(sentence(plan_of({128, 64}, true), 4) ==
        "cuda::backward: the plan has tiles of 128 x 64, must be 64 x 64");
  CHECK(
      sentence(plan_of({64, 64}, false), 4) ==
      "cuda::backward: the plan has no transposed tile lists; build it with {.transposed = true}");
  const backward_arguments<float> in_fp32 = valid.arguments();
  CHECK(sentence_of([&] { refused_backward(in_fp32, plan, 4); }) == "no error");
  CHECK(sentence_of([&] {
          refused_backward(in_fp32, plan_of({32, 32}, true), 4);
        }) == "cuda::backward: the plan has tiles of 32 x 32, must be 64 x 64");
  backward_arguments<bfloat16> wide = as_bf16(valid.arguments());
  wide.q.head_dim = wide.k.head_dim = wide.d_q.head_dim = wide.d_k.head_dim = 264;
  wide.d_q.head_stride = wide.d_k.head_stride = 264;
  wide.d_q.token_stride = wide.d_k.token_stride = 1200;
  CHECK(sentence_of([&] { refused_backward(wide, plan, 4); }) ==
        "cuda::backward: q.head_dim is 264, must be a multiple of 8 from 8 to 256");
}
