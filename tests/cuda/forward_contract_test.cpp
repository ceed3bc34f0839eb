// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/as_bf16.hpp"
#include "cuda/cuda_backend.hpp"
#include "support/forward_errors.hpp"
#include "support/forward_oracle.hpp"
#include "support/plain_tensors.hpp"

using namespace blockattn;
using namespace blockattn_test;

// DESIGN.md, section 6, point by point.

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// A call with everything: plan per head, GQA, softcap, sink logits, rows cut among ctas.
attention_case rich_case() {
  attention_case c;
  c.kind = "rich";
  c.masks = {block_attention_mask(layout_of({290, 17, 0, 750, 160})), {}};
  c.masks.masks.push_back(sink_window_mask(c.query_tokens(), 4, 1111));
  c.masks.shapes.push_back({});
  c.masks.head_to_mask = {1, 0, 0, 1, 1, 0};
  c.query_heads = 6;
  c.kv_heads = 2;
  c.head_dim = 40;
  c.value_dim = 64;
  c.options.softcap = 20;
  c.with_sink_logits = true;
  c.q.offset = c.v.offset = c.o.offset = 1;
  c.k.head_major = c.lse.head_major = true;
  return c;
}

std::vector<bfloat16> ones(index_t count) {
  return std::vector<bfloat16>(static_cast<std::size_t>(count), bfloat16{0x3f80});
}

tile_plan plan_for_valid_call() {
  return make_tile_plan(full_mask(valid_call::query_tokens, valid_call::key_tokens),
                        device_tile_shape(16, 24));
}

}  // namespace

TEST_CASE("cuda 1. a row that sees nothing is 0 with lse = -inf or its sink logit") {
  if (skips_without_device()) return;
  const auto mask = attention_mask::from_disjoint_slices(
      400, 400, {{.queries = {3, 4}, .keys = {5, 9}}, {.queries = {320, 400}, .keys = {33, 40}}});
  for (const bool with_sinks : {false, true}) {
    random_source random(1);
    plain_inputs<bfloat16> in = random_inputs<bfloat16>(random, 400, 400);
    // Rows that see nothing may hold anything themselves.
    std::fill_n(in.q.begin(), in.sizes.query_heads * in.sizes.head_dim, bfloat16{0x7fc0});
    plain_options<bfloat16> options;
    if (with_sinks) options.sink_logits = {0.5F, -infinity, 100, -3};
    const plain_outputs<bfloat16> out = run_forward(cuda_backend{}, in, mask, options);
    for (index_t i = 0; i < 400; ++i) {
      if (i == 3 || i >= 320) continue;
      for (index_t h = 0; h < out.heads; ++h) {
        CAPTURE(i, h, with_sinks);
        const bfloat16* const row = out.o_row(i) + h * out.value_dim;
        CHECK(
            std::all_of(row, row + out.value_dim, [](bfloat16 x) { return load_scalar(x) == 0; }));
        CHECK(out.lse_row(i)[h] ==
              (with_sinks ? options.sink_logits[static_cast<std::size_t>(h)] : -infinity));
      }
    }
  }
}

TEST_CASE("cuda 1. keys that no row sees may hold anything") {
  if (skips_without_device()) return;
  // Hidden keys inside tiles of the final block's rows and of the context's.
  const auto mask =
      attention_mask::from_disjoint_slices(200, 200,
                                           {{.queries = {0, 200}, .keys = {3, 10}, .upper = 0},
                                            {.queries = {50, 200}, .keys = {11, 60}, .upper = 0},
                                            {.queries = {60, 200}, .keys = {63, 190}, .upper = 0}});
  random_source random(2);
  const plain_inputs<float16> clean = random_inputs<float16>(random, 200, 200);
  const plain_outputs<float16> expected = run_forward(cuda_backend{}, clean, mask);
  for (const std::uint16_t poison :
       std::initializer_list<std::uint16_t>{0x7e00, 0x7c00, 0xfc00, 0x7bff}) {
    plain_inputs<float16> in = clean;
    const plain_sizes& s = in.sizes;
    for (const index_t key : {0, 1, 2, 10, 60, 61, 62, 190, 195, 199}) {
      std::fill_n(in.k.begin() + key * s.kv_heads * s.head_dim, s.kv_heads * s.head_dim,
                  float16{poison});
      std::fill_n(in.v.begin() + key * s.kv_heads * s.value_dim, s.kv_heads * s.value_dim,
                  float16{poison});
    }
    CAPTURE(poison);
    CHECK(same_bits(run_forward(cuda_backend{}, in, mask), expected));
  }
}

TEST_CASE("cuda: NaN and scores beyond fp32 are never taken for a row that sees nothing") {
  if (skips_without_device()) return;
  for (const std::uint16_t bad : std::initializer_list<std::uint16_t>{
           0x7fc0, 0x7149}) {  // NaN and 1e30: its square is no fp32 number
    std::vector<bfloat16> q = ones(40 * 8), k = ones(40 * 8), v = ones(40 * 8), o(40 * 8);
    std::vector<float> lse(40);
    if (bad != 0x7fc0) std::fill(q.begin(), q.end(), bfloat16{0x0da2});  // 1e-30: scores near 3
    std::fill_n(q.begin() + 20 * 8, 8, bfloat16{bad});
    if (bad != 0x7fc0) std::fill(k.begin(), k.end(), bfloat16{bad});
    cuda_backend{}.forward(
        forward_arguments<bfloat16>{.q = token_major<const bfloat16>(q.data(), 40, 1, 8),
                                    .k = token_major<const bfloat16>(k.data(), 40, 1, 8),
                                    .v = token_major<const bfloat16>(v.data(), 40, 1, 8),
                                    .o = token_major(o.data(), 40, 1, 8),
                                    .lse = token_major_lse(lse.data(), 40, 1)},
        head_masks(causal_mask(40), {}));
    CAPTURE(bad);
    CHECK(std::isnan(load_scalar(o[20 * 8])));
    CHECK(!std::isfinite(lse[20]));
    CHECK(lse[20] != -infinity);
    CHECK(load_scalar(o[19 * 8]) == 1.0F);
  }
}

TEMPLATE_TEST_CASE("cuda 3. the same inputs give the same bits", "", float16, bfloat16, float) {
  if (skips_without_device()) return;
  const attention_case c = rich_case();
  const attention_tensors<TestType, TestType, TestType, TestType> first(c);
  cuda_backend{}.forward(first.arguments(), c.masks, c.options);
  CHECK(forward_oracle(first, c, cuda_backend::weight_roundoff<TestType>).first_difference(first) ==
        "");
  for (int run = 0; run < 5; ++run) {
    const attention_tensors<TestType, TestType, TestType, TestType> again(c);
    cuda_backend{}.forward(again.arguments(), c.masks, c.options);
    CHECK(again.o.same_bits(first.o));
    CHECK(again.lse.same_bits(first.lse));
  }
}

TEST_CASE("cuda 4. every bad argument is refused in a sentence") {
  const tile_plan plan = plan_for_valid_call();
  for (const forward_error& expected : forward_errors()) {
    if (expected.sentence.starts_with("sink_logits[")) continue;  // values on the device
    valid_call valid;
    forward_arguments<float> arguments = valid.arguments();
    attention_options options;
    expected.spoil(arguments, options);
    CAPTURE(expected.sentence);
    CHECK(sentence_of([&] {
            refused_forward(as_bf16(arguments), plan, 4, options);
          }).starts_with("cuda::forward: " + expected.sentence));
    CHECK(valid.outputs_untouched());
  }
  valid_call valid;
  CHECK(sentence_of([&] { refused_forward(as_bf16(valid.arguments()), plan, 4); }) == "no error");
}

TEST_CASE("cuda 4. head dims that are no multiple of 8 up to 256 are refused") {
  const tile_plan plan = plan_for_valid_call();
  for (const index_t head_dim : {0, 4, 9, 12, 15, 264}) {
    valid_call valid;
    forward_arguments<bfloat16> keys = as_bf16(valid.arguments());
    keys.q.head_dim = keys.k.head_dim = head_dim;
    const std::vector<bfloat16> q(5 * 4 * 264), k(7 * 2 * 264);
    keys.q.data = q.data();
    keys.k.data = k.data();
    CHECK(sentence_of([&] { refused_forward(keys, plan, 4); }) ==
          "cuda::forward: q.head_dim is " + std::to_string(head_dim) +
              ", must be a multiple of 8 from 8 to 256");
  }
}

TEST_CASE("cuda 4. plans of another size, number of heads or tile shape are refused") {
  valid_call valid;
  const auto sentence = [&](const tile_plan& plan, index_t heads) {
    return sentence_of([&] { refused_forward(as_bf16(valid.arguments()), plan, heads); });
  };
  CHECK(sentence(make_tile_plan(full_mask(7, 5), device_tile_shape(16, 24)), 4) ==
        "cuda::forward: the plan is for 7 queries x 5 keys, the arguments have 5 x 7");
  CHECK(sentence(plan_for_valid_call(), 2) ==
        "cuda::forward: the plan is for 2 query heads but q has 4");
  CHECK(sentence(make_tile_plan(full_mask(5, 7), {32, 64}), 4) ==
        "cuda::forward: the plan has tiles of 32 x 64, head dims 16 and 24 need 128 x 128 or 64 x "
        "64 (cuda::tile_shape_for)");
  const tile_plan coarse = make_tile_plan(full_mask(5, 7), {128, 64});
  CHECK(sentence_of([&] { refused_forward(valid.arguments(), coarse, 4); }) ==
        "cuda::forward: the plan has tiles of 128 x 64, head dims 16 and 24 need 64 x 64 "
        "(cuda::tile_shape_for)");
  CHECK(device_tile_shape(136, 8, storage_format::fp32) == tile_shape{32, 32});
}

TEST_CASE("cuda 4. plans that do not fit a device are refused") {
  const std::vector<tile_plan> plans = {
      make_tile_plan(full_mask(5, 7), {64, 64}), make_tile_plan(full_mask(5, 7), {128, 64}),
      make_tile_plan(full_mask(5, 7), {64, 256}), make_tile_plan(full_mask(1, 1 << 30), {64, 64})};
  const std::span<const tile_plan> all = plans;
  const std::vector<index_t> heads = {0, 1};
  CHECK(sentence_of([&] {
          device_plan_size({all.first(2), heads}, 2);
        }) == "cuda::device_plan_size: plan 1 has tiles of 128 x 64 but plan 0 has 64 x 64");
  CHECK(sentence_of([&] {
          device_plan_size({all.first(2), heads}, 3);
        }) == "cuda::device_plan_size: head_to_plan has 2 entries for 3 query heads");
  CHECK(sentence_of([&] { device_plan_size(plans[2], 1); }) ==
        "cuda::device_plan_size: plan 0 has tiles of 64 x 256, on a device they are at most 128 x "
        "128; build it with cuda::tile_shape_for");
  CHECK(sentence_of([&] { device_plan_size(plans[3], 1); }) ==
        "cuda::device_plan_size: the plan is for 1 queries x 1073741824 keys, a device plan holds "
        "fewer than 1073741824 of each");
  CHECK(sentence_of([&] {
          device_plan_size({all.first(0), {}}, 1);
        }) == "cuda::device_plan_size: the plan set holds no plan");
  CHECK(sentence_of([&] { device_plan_size(plans[0], -1); }) ==
        "cuda::device_plan_size: query_heads is -1, must not be negative");
  CHECK(sentence_of([&] { device_plan_size(plans[0], 8); }) == "no error");
}

TEST_CASE("cuda 4. plans with more partial tiles than a device plan counts are refused") {
  // One span on the host; on a device each of the 2^30 - 1 tiles has three slices of its own.
  const index_t keys = (index_t{1} << 30) - 1;
  const auto mask = attention_mask::from_disjoint_slices(
      8, keys, {{{0, 1}, {0, keys}}, {{2, 3}, {0, keys}}, {{4, 5}, {0, keys}}});
  const tile_plan plan = make_tile_plan(mask, {64, 1});
  CHECK(sentence_of([&] { device_plan_size(plan, 1); }) ==
        "cuda: the plan has 1073741823 spans and 3221225469 slices in its partial tiles, a device "
        "plan holds at most 2147483646 of each; use larger tiles or split the mask");
}

TEST_CASE("cuda 4. memory that a plan cannot go through is refused") {
  const tile_plan plan = make_tile_plan(causal_mask(200), {64, 64}, {.transposed = true});
  const index_t size = device_plan_size(plan, 2);
  workspace_buffer memory(size + workspace_alignment);
  workspace_buffer staging(size + workspace_alignment);
  const auto sentence = [&](index_t offset, index_t bytes, index_t staging_offset,
                            index_t staging_bytes) {
    const auto part = [](workspace_buffer& buffer, index_t from, index_t count) {
      return buffer.bytes().subspan(static_cast<std::size_t>(from),
                                    static_cast<std::size_t>(count));
    };
    return sentence_of([&] {
      refused_upload(plan, 2, part(memory, offset, bytes),
                     part(staging, staging_offset, staging_bytes));
    });
  };
  const std::string bytes = std::to_string(size);
  const std::string fewer = std::to_string(size - 1);
  CHECK(sentence(0, size, 0, size) == "no error");
  CHECK(sentence(0, size, 16, size) == "no error");
  CHECK(sentence(0, size - 1, 0, size) ==
        "cuda::upload_plan: device_memory has " + fewer + " bytes, needs " + bytes);
  CHECK(sentence(32, size, 0, size) ==
        "cuda::upload_plan: device_memory is 32 bytes past a multiple of 64");
  CHECK(sentence(0, size, 0, size - 1) ==
        "cuda::upload_plan: staging has " + fewer + " bytes, needs " + bytes);
  CHECK(sentence(0, size, 8, size) ==
        "cuda::upload_plan: staging is 8 bytes past a multiple of 16");
}

TEST_CASE("cuda 4. factors that leave fp32 in base 2 are refused") {
  valid_call valid;
  const auto sentence = [&](const attention_options& options) {
    return sentence_of(
        [&] { refused_forward(as_bf16(valid.arguments()), plan_for_valid_call(), 4, options); });
  };
  CHECK(sentence({.scale = 3e38}) ==
        "cuda::forward: options.scale is 3e+38, must be finite in the accumulator, also times "
        "log2(e)");
  CHECK(sentence({.softcap = 3e38}) ==
        "cuda::forward: options.softcap is 3e+38, must be >= 0 and finite in the accumulator, also "
        "times log2(e)");
  CHECK(sentence({.scale = 2e38}) == "no error");
}

TEST_CASE("cuda 4. more heads than a launch takes are refused") {
  // One head of a long row of tiles, which is cut, among many that see nothing.
  constexpr index_t queries = 64, keys = 2560, heads = 70000, head_dim = 64;
  const tile_shape shape = device_tile_shape(head_dim, head_dim);
  const std::vector<tile_plan> plans = {
      make_tile_plan(attention_mask::from_disjoint_slices(queries, keys, {}), shape),
      make_tile_plan(full_mask(queries, keys), shape)};
  std::vector<index_t> plan_of_head(heads, 0);
  // Addresses of which nothing is looked at, far apart.
  const auto address = [](int i) {
    return reinterpret_cast<bfloat16*>(static_cast<std::uintptr_t>(i) << 40);
  };
  const auto view = [](auto* data, index_t tokens) {
    return heads_view<std::remove_pointer_t<decltype(data)>>{data,     tokens,           heads,
                                                             head_dim, heads * head_dim, head_dim};
  };
  const forward_arguments<bfloat16> arguments = {.q = view(address(1), queries),
                                                 .k = view(address(2), keys),
                                                 .v = view(address(3), keys),
                                                 .o = view(address(4), queries)};
  CHECK(sentence_of([&] { refused_forward(arguments, plans[0], heads); }) == "no error");
  plan_of_head[5] = 1;
  CHECK(
      sentence_of([&] {
        refused_forward(arguments, {plans, plan_of_head}, heads);
      }) ==
      "cuda::forward: 70000 query heads are more than a launch takes where long rows of tiles are "
      "cut");
}

TEST_CASE("cuda: empty axes are legal") {
  if (skips_without_device()) return;
  struct sizes {
    index_t queries, keys, query_heads, kv_heads;
  };
  for (const sizes& s : {sizes{0, 0, 2, 1}, sizes{0, 9, 2, 1}, sizes{9, 0, 2, 1}, sizes{9, 9, 0, 0},
                         sizes{9, 9, 0, 3}, sizes{0, 0, 0, 0}}) {
    CAPTURE(s.queries, s.keys, s.query_heads, s.kv_heads);
    attention_case c;
    c.masks = {full_mask(s.queries, s.keys), {}};
    c.query_heads = s.query_heads;
    c.kv_heads = s.kv_heads;
    const attention_tensors<bfloat16, bfloat16, bfloat16, float> tensors(c);
    cuda_backend{}.forward(tensors.arguments(), c.masks);
    CHECK(tensors.margins_untouched());
    for (index_t i = 0; i < s.queries && s.keys == 0; ++i) {
      for (index_t h = 0; h < s.query_heads; ++h) {
        const float* const row = tensors.o.view().row(i, h);
        CHECK(std::count(row, row + c.value_dim, 0.0F) == c.value_dim);
        CHECK(tensors.lse.as_lse().at(i, h) == -infinity);
      }
    }
  }
}
