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

TEST_CASE("cuda::backward leaves rounding alone to rows that see one key") {
  if (skips_without_device()) return;
  constexpr index_t n = 130, dim = 64;
  constexpr double scale = 0.125;
  random_source random(test_seed(77));
  const auto q = random.normal_values<bfloat16>(n * dim),
             k = random.normal_values<bfloat16>(n * dim);
  const auto v = random.normal_values<bfloat16>(n * dim);
  const auto d_o = random.normal_values<bfloat16>(n * dim);
  const auto value = [&](const std::vector<bfloat16>& of, index_t token, index_t i) {
    return static_cast<double>(load_scalar(of[static_cast<std::size_t>(token * dim + i)]));
  };
  std::vector<float> lse(n);
  std::vector<double> sums(n);
  for (index_t t = 0; t < n; ++t) {
    double score = 0;
    for (index_t i = 0; i < dim; ++i) {
      score += value(q, t, i) * value(k, t, i);
      sums[static_cast<std::size_t>(t)] += std::abs(value(d_o, t, i) * value(v, t, i));
    }
    lse[static_cast<std::size_t>(t)] = static_cast<float>(scale * score);
  }
  const slice diagonal = {.queries = {0, n}, .keys = {0, n}, .lower = 0, .upper = 0};
  const attention_mask mask = attention_mask::from_disjoint_slices(n, n, {diagonal});
  for (const cuda_backend& backend : backends) {
    std::vector<float> d_q(n * dim, 1), d_k(n * dim, 1), d_v(n * dim, 1);
    const auto rows = [](const std::vector<bfloat16>& of) {
      return token_major(of.data(), n, 1, dim);
    };
    backend.backward(
        backward_arguments<bfloat16, bfloat16, bfloat16, bfloat16, float, float, float>{
            .q = rows(q),
            .k = rows(k),
            .v = rows(v),
            .o = rows(v),  // one key: its value
            .lse = token_major_lse<const float>(lse.data(), n, 1),
            .d_o = rows(d_o),
            .d_q = token_major(d_q.data(), n, 1, dim),
            .d_k = token_major(d_k.data(), n, 1, dim),
            .d_v = token_major(d_v.data(), n, 1, dim)},
        {mask, {}}, {.scale = scale});
    for (index_t t = 0; t < n; ++t) {
      const double bound = 0x1p-18 * sums[static_cast<std::size_t>(t)] * scale;
      for (index_t i = 0; i < dim; ++i) {
        const auto at = static_cast<std::size_t>(t * dim + i);
        REQUIRE(std::abs(static_cast<double>(d_q[at])) <= bound * std::abs(value(k, t, i)));
        REQUIRE(std::abs(static_cast<double>(d_k[at])) <= bound * std::abs(value(q, t, i)));
      }
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
  for (const index_t queries : {3, 64, 200}) {
    attention_case c = plain_case(full_mask(queries, 1), 64, 64);
    c.query_heads = c.kv_heads = 16;
    c.options.scale = 30;
    check_plain<bfloat16>(c);
    check_plain<float16>(c);
    check_plain<float>(c);
  }
}

TEST_CASE("cuda::backward equals the reference over any number of kv heads") {
  if (skips_without_device()) return;
  for (const index_t kv_heads : {4, 5, 6, 9}) {
    attention_case c = plain_case(block_attention_mask(layout_of({120, 70, 30})), 64, 40);
    c.kv_heads = kv_heads;
    c.query_heads = kv_heads % 2 == 0 ? 2 * kv_heads : kv_heads;
    check_plain<bfloat16>(c);
    c.head_dim = 136;  // two ctas for each key tile
    check_plain<float16>(c);
  }
}

TEST_CASE("cuda::backward of nothing leaves gradients 0") {
  if (skips_without_device()) return;
  for (const cuda_backend& backend : backends) {
    struct size {
      index_t queries, keys, query_heads, kv_heads;
    };
    for (const size& n : {size{3, 5, 0, 4}, {0, 5, 8, 4}, {3, 0, 8, 4}, {3, 5, 0, 0}}) {
      const tensor_layout layout;
      const hostile_tensor<bfloat16> q(n.queries, n.query_heads, 16, layout);
      const hostile_tensor<bfloat16> k(n.keys, n.kv_heads, 16, layout);
      const hostile_tensor<float> lse(n.queries, n.query_heads, 1, layout);
      const hostile_tensor<bfloat16> d_q(n.queries, n.query_heads, 16, layout);
      const hostile_tensor<bfloat16> d_k(n.keys, n.kv_heads, 16, layout);
      const hostile_tensor<bfloat16> d_v(n.keys, n.kv_heads, 16, layout);
      backend.backward(backward_arguments<bfloat16>{.q = q.view(),
                                                    .k = k.view(),
                                                    .v = k.view(),
                                                    .o = q.view(),
                                                    .lse = lse.as_lse(),
                                                    .d_o = q.view(),
                                                    .d_q = d_q.view(),
                                                    .d_k = d_k.view(),
                                                    .d_v = d_v.view()},
                       {full_mask(n.queries, n.keys), {}});
      const auto is_zero = [](const heads_view<bfloat16>& view) {
        for (index_t token = 0; token < view.tokens; ++token) {
          for (index_t head = 0; head < view.heads; ++head) {
            const bfloat16* const row = view.row(token, head);
            if (std::any_of(row, row + view.head_dim, [](bfloat16 x) { return x.bits != 0; })) {
              return false;
            }
          }
        }
        return true;
      };
      if (n.keys > 0 && n.query_heads == 0) CHECK((is_zero(d_k.view()) && is_zero(d_v.view())));
      if (n.queries == 0) CHECK((is_zero(d_k.view()) && is_zero(d_v.view())));
      if (n.keys == 0) CHECK(is_zero(d_q.view()));
    }
  }
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

/// Gradients of five calls against those of a first one.
template <class T>
void check_same_bits(const cuda_backend& backend, index_t dim, bool of_queries) {
  attention_case c = plain_case(block_attention_mask(layout_of({300, 170, 500, 60})), dim, dim);
  c.query_heads = 4;
  c.kv_heads = 2;
  c.with_sink_logits = true;
  backward_tensors<T, T, T, T> first(c);
  backend.backward(first.arguments(), c.masks, c.options);
  for (int run = 0; run < 5; ++run) {
    backward_tensors<T, T, T, T> again(c);
    backend.backward(again.arguments(), c.masks, c.options);
    CHECK(again.d_k.same_bits(first.d_k));
    CHECK(again.d_v.same_bits(first.d_v));
    CHECK(again.d_sink_logits == first.d_sink_logits);
    if (of_queries) CHECK(again.d_q.same_bits(first.d_q));
  }
}

TEST_CASE("cuda::backward gives the same bits each time where it is deterministic") {
  if (skips_without_device()) return;
  check_same_bits<bfloat16>({.deterministic = true}, 64, true);
  check_same_bits<bfloat16>({.deterministic = true}, 128, true);
  check_same_bits<bfloat16>({}, 128, false);
  check_same_bits<bfloat16>({}, 256, true);  // by a kernel of its own in any case
  check_same_bits<float>({}, 64, true);
}

TEST_CASE("cuda::backward_workspace_size counts rows of whole tiles") {
  const tile_plan plan = make_tile_plan(causal_mask(65), {64, 64}, {.transposed = true});
  constexpr index_t rows = 3 * 128;  // of three heads
  CHECK(backward_workspace_of(plan, 3, 64, 64, true) == 8 * rows);
  CHECK(backward_workspace_of(plan, 3, 8, 64, false) == (8 + 4 * 64) * rows);
  CHECK(backward_workspace_of(plan, 3, 72, 8, false) == (8 + 4 * 128) * rows);
  CHECK(backward_workspace_of(plan, 3, 136, 8, false) == 8 * rows);  // a kernel of its own
  CHECK(sentence_of([&] { backward_workspace_of(plan, 3, 64, 264, false); }) ==
        "cuda::backward_workspace_size: v.head_dim is 264, must be a multiple of 8 from 8 to 256");
  CHECK(sentence_of([&] { forward_workspace_of(plan, 3, 4, 64); }) ==
        "cuda::forward_workspace_size: q.head_dim is 4, must be a multiple of 8 from 8 to 256");
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
    CAPTURE(expected.sentence);
    CHECK(sentence_of([&] {
            refused_backward(as_bf16(arguments), plan, 4, options);
          }).starts_with("cuda::backward: " + expected.sentence));
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
  std::vector<bfloat16> d_q(5 * 1200), d_k(7 * 1200), q(5 * 4 * 264), k(7 * 2 * 264);
  wide.d_q.data = d_q.data();
  wide.d_k.data = d_k.data();
  wide.q.data = q.data();
  wide.k.data = k.data();
  CHECK(sentence_of([&] { refused_backward(wide, plan, 4); }) ==
        "cuda::backward: q.head_dim is 264, must be a multiple of 8 from 8 to 256");

  backward_arguments<bfloat16> many;  // of no tokens
  many.q.heads = many.k.heads = many.v.heads = many.o.heads = many.d_o.heads = 70000;
  many.d_q.heads = many.d_k.heads = many.d_v.heads = many.lse.heads = 70000;
  many.q.head_dim = many.k.head_dim = many.v.head_dim = many.o.head_dim = 64;
  many.d_o.head_dim = many.d_q.head_dim = many.d_k.head_dim = many.d_v.head_dim = 64;
  float lse = 0;
  many.lse.data = &lse;
  const tile_plan no_tokens = make_tile_plan(full_mask(0, 0), {64, 64}, {.transposed = true});
  CHECK(sentence_of([&] { refused_backward(many, no_tokens, 70000); }) ==
        "cuda::backward: 70000 query heads are more than a launch takes");
  attention_options large;
  large.scale = -3e38;
  CHECK(sentence_of([&] { refused_backward(as_bf16(valid.arguments()), plan, 4, large); }) ==
        "cuda::backward: options.scale is -3e+38, must be finite in the accumulator, also times "
        "log2(e)");
}
