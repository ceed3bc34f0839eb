// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/attend_blocks.hpp>
#include <blockattn/cpu/backward.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/cpu/merge.hpp>
#include <blockattn/cpu/merge_backward.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include <array>
#include <vector>

#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;
using namespace blockattn;

// Sizes from shapes must be those of the calls: each is compared with the job that has memory.

namespace {

constexpr index_t queries = 40, keys = 70, q_heads = 4, kv_heads = 2, dim = 24, value_dim = 32;

struct memory {
  std::vector<float> q = std::vector<float>(queries * q_heads * dim);
  std::vector<float> k = std::vector<float>(keys * kv_heads * dim);
  std::vector<float> v = std::vector<float>(keys * kv_heads * value_dim);
  std::vector<float> o = std::vector<float>(queries * q_heads * value_dim);
  std::vector<float> lse = std::vector<float>(queries * q_heads);
};

forward_arguments<float> forward_of(float* q, float* k, float* v, float* o, bool adjacent_values) {
  return {.q = token_major<const float>(q, queries, q_heads, dim),
          .k = token_major<const float>(k, keys, kv_heads, dim),
          .v = adjacent_values ? head_major<const float>(v, keys, kv_heads, value_dim)
                               : token_major<const float>(v, keys, kv_heads, value_dim),
          .o = token_major(o, queries, q_heads, value_dim)};
}

tile_plan plan_of_call() {
  return make_tile_plan(causal_mask(queries, keys), {.queries = 16, .keys = 32},
                        {.transposed = true});
}

}  // namespace

TEST_CASE("the workspace of forward from shapes") {
  const auto plan = plan_of_call();
  memory m;
  for (const bool adjacent : {false, true}) {
    const auto planned = forward_of(nullptr, nullptr, nullptr, nullptr, adjacent);
    const auto real = forward_of(m.q.data(), m.k.data(), m.v.data(), m.o.data(), adjacent);
    for (const index_t workers : {1, 3}) {
      CHECK(cpu::forward_workspace_size(planned, plan, workers) ==
            workspace_size(cpu::prepare_forward(real, plan), workers));
    }
  }
  // Addresses are not looked at: an allocator that only measures may give the same one to all.
  float dummy = 0;
  CHECK(
      cpu::forward_workspace_size(forward_of(&dummy, &dummy, &dummy, &dummy, false), plan, 1) ==
      cpu::forward_workspace_size(forward_of(nullptr, nullptr, nullptr, nullptr, false), plan, 1));
  auto wrong = forward_of(nullptr, nullptr, nullptr, nullptr, false);
  wrong.v.tokens = 3;
  CHECK_THROWS_WITH(cpu::forward_workspace_size(wrong, plan, 1),
                    contains("cpu::forward_workspace_size: v has 3 tokens but k has 70"));
  wrong = forward_of(nullptr, nullptr, nullptr, nullptr, false);
  CHECK_THROWS_WITH(cpu::forward_workspace_size(wrong, plan, 0), contains("concurrency is 0"));
  CHECK_THROWS_WITH(cpu::forward(wrong, plan), contains("q.data is null"));
}

TEST_CASE("the workspace of backward from shapes, and one beyond any memory") {
  const auto plan = plan_of_call();
  memory m, d;
  const auto arguments = [&](bool real) {
    const auto at = [real](std::vector<float>& values) { return real ? values.data() : nullptr; };
    const auto lse = token_major_lse<const float>(at(m.lse), queries, q_heads);
    return backward_arguments<float>{
        .q = token_major<const float>(at(m.q), queries, q_heads, dim),
        .k = token_major<const float>(at(m.k), keys, kv_heads, dim),
        .v = token_major<const float>(at(m.v), keys, kv_heads, value_dim),
        .o = token_major<const float>(at(m.o), queries, q_heads, value_dim),
        .lse = lse,
        .d_o = token_major<const float>(at(d.o), queries, q_heads, value_dim),
        .d_q = token_major(at(d.q), queries, q_heads, dim),
        .d_k = token_major(at(d.k), keys, kv_heads, dim),
        .d_v = token_major(at(d.v), keys, kv_heads, value_dim)};
  };
  for (const index_t workers : {1, 4}) {
    CHECK(cpu::backward_workspace_size(arguments(false), plan, workers) ==
          workspace_size(cpu::prepare_backward(arguments(true), plan), workers));
  }
  // 2^31 queries of 2^20 heads: the sums of d_q alone would take 2^62 bytes and more.
  constexpr index_t many = index_t{1} << 31, heads = index_t{1} << 20;
  const auto large_plan = make_tile_plan(attention_mask::from_disjoint_slices(many, 8, {}),
                                         {.queries = 1 << 20, .keys = 8}, {.transposed = true});
  backward_arguments<bfloat16> large = {.q = token_major<const bfloat16>(nullptr, many, heads, 8),
                                        .k = token_major<const bfloat16>(nullptr, 8, 1, 8),
                                        .v = token_major<const bfloat16>(nullptr, 8, 1, 8),
                                        .o = token_major<const bfloat16>(nullptr, many, heads, 8),
                                        .lse = token_major_lse<const float>(nullptr, many, heads),
                                        .d_o = token_major<const bfloat16>(nullptr, many, heads, 8),
                                        .d_q = token_major<bfloat16>(nullptr, many, heads, 8),
                                        .d_k = token_major<bfloat16>(nullptr, 8, 1, 8),
                                        .d_v = token_major<bfloat16>(nullptr, 8, 1, 8)};
  CHECK(cpu::backward_workspace_size(large, large_plan, 1) > index_t{1} << 57);
  large.q = token_major<const bfloat16>(nullptr, many, 16 * heads, 8);
  large.d_q = token_major<bfloat16>(nullptr, many, 16 * heads, 8);
  large.o = large.d_o = token_major<const bfloat16>(nullptr, many, 16 * heads, 8);
  CHECK_THROWS_WITH(cpu::backward_workspace_size(large, large_plan, 1),
                    contains("more bytes than any machine"));
}

TEST_CASE("the workspace of attend_blocks from shapes") {
  memory m;
  const auto size = [&](bool real, index_t workers) {
    const auto at = [real](std::vector<float>& values) { return real ? values.data() : nullptr; };
    const std::array<key_segment<float>, 1> segments = {
        {{.k = token_major<const float>(at(m.k), keys, kv_heads, dim),
          .v = token_major<const float>(at(m.v), keys, kv_heads, value_dim)}}};
    const std::array<attend_sequence<float>, 1> sequences = {
        {{.queries = {0, queries}, .segments = segments}}};
    const attend_arguments<float> arguments = {
        .q = token_major<const float>(at(m.q), queries, q_heads, dim),
        .o = token_major(at(m.o), queries, q_heads, value_dim),
        .sequences = sequences};
    return real ? workspace_size(cpu::prepare_attend_blocks<float>(arguments), workers)
                : cpu::attend_blocks_workspace_size<float>(arguments, {}, workers);
  };
  CHECK(size(false, 1) == size(true, 1));
  CHECK(size(false, 5) == size(true, 5));
}

TEST_CASE("the workspace of merge and of its gradient from shapes") {
  const std::vector<partial_state<float>> states(
      3, {.o = token_major<const float>(nullptr, queries, q_heads, value_dim),
          .lse = token_major_lse<const float>(nullptr, queries, q_heads)});
  const merge_arguments<float> arguments = {
      .states = states, .o = token_major<float>(nullptr, queries, q_heads, value_dim)};
  CHECK(cpu::merge_workspace_size(arguments, 2) ==
        workspace_size(cpu::merge_job<float, float, default_arch>(arguments), 2));
  const std::vector<partial_state_gradient<float>> gradients(3);
  const merge_backward_arguments<float> backward = {
      .states = states,
      .d_o = token_major<const float>(nullptr, queries, q_heads, value_dim),
      .gradients = gradients};
  CHECK(cpu::merge_backward_workspace_size(backward, 2) ==
        workspace_size(cpu::merge_backward_job<float, float, float, default_arch>(backward), 2));
}
