// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/backward.hpp>
#include <blockattn/cpu/forward.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include <vector>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

constexpr index_t tokens = 37, heads = 3, dim = 16;

/// q, k, v and o of every token, or their gradients, in one record or apart.
struct record {
  record(bool fused, const std::vector<float>& values) {
    const index_t part = tokens * heads * dim;
    for (index_t i = 0; i < 4; ++i) {
      if (!fused) memory[static_cast<std::size_t>(i)].resize(static_cast<std::size_t>(part));
    }
    if (fused) memory[0].resize(static_cast<std::size_t>(4 * part));
    for (index_t i = 0; i < 4; ++i) {
      parts[i] = fused ? heads_view<float>{memory[0].data() + i * heads * dim,
                                           tokens,
                                           heads,
                                           dim,
                                           4 * heads * dim,
                                           dim}
                       : token_major(memory[i].data(), tokens, heads, dim);
      for (index_t t = 0; t < tokens; ++t) {
        for (index_t h = 0; h < heads; ++h) {
          const auto* const row = values.data() + ((i * tokens + t) * heads + h) * dim;
          std::copy_n(row, dim, parts[i].row(t, h));
        }
      }
    }
  }
  std::vector<float> memory[4];
  heads_view<float> parts[4];
};

bool equal_rows(const heads_view<float>& a, const heads_view<float>& b) {
  for (index_t t = 0; t < a.tokens; ++t) {
    for (index_t h = 0; h < a.heads; ++h) {
      if (!std::equal(a.row(t, h), a.row(t, h) + a.head_dim, b.row(t, h))) return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("a workspace over a tensor of the call is refused") {
  const std::vector<float> values(4 * tokens * heads * dim, 1);
  record tensors(false, values);
  const auto plan = make_tile_plan(causal_mask(tokens, tokens), {.queries = 16, .keys = 16});
  const auto& [q, k, v, o] = tensors.parts;
  const forward_arguments<float> arguments = {.q = q, .k = k, .v = v, .o = o};
  const index_t needed = cpu::forward_workspace_size(arguments, plan, 1);
  const workspace_buffer buffer(needed + tokens * heads * dim * 4);
  serial_executor serial;
  auto inside = arguments;
  inside.k.data = reinterpret_cast<const float*>(buffer.bytes().data() + needed) - 1;
  CHECK_THROWS_WITH(cpu::forward(inside, plan, {}, serial, buffer.bytes()),
                    contains("cpu::forward: workspace and k overlap in memory"));
  // Behind the bytes that a call uses a workspace is anybody's.
  inside.k.data = reinterpret_cast<const float*>(buffer.bytes().data() + needed);
  CHECK_NOTHROW(cpu::forward(inside, plan, {}, serial, buffer.bytes()));
}

TEST_CASE("q, k, v, o and their gradients may be interleaved in one buffer") {
  const std::uint64_t seed = test_seed(611);
  CAPTURE(seed);
  random_source random(seed);
  const auto values = random.normal_values<float>(4 * tokens * heads * dim);
  const auto plan = make_tile_plan(causal_mask(tokens, tokens), {.queries = 16, .keys = 16},
                                   {.transposed = true});
  const auto run = [&](record& tensors, record& gradients) {
    std::vector<float> lse(tokens * heads);
    const auto& [q, k, v, o] = tensors.parts;
    const auto lse_rows = token_major_lse(lse.data(), tokens, heads);
    cpu::forward<float>({.q = q, .k = k, .v = v, .o = o, .lse = lse_rows}, plan);
    const auto& [d_q, d_k, d_v, d_o] = gradients.parts;
    cpu::backward<float>({.q = q,
                          .k = k,
                          .v = v,
                          .o = o,
                          .lse = lse_rows,
                          .d_o = d_o,
                          .d_q = d_q,
                          .d_k = d_k,
                          .d_v = d_v},
                         plan);
  };
  record apart(false, values), fused(true, values);
  record d_apart(false, values), d_fused(true, values);
  run(apart, d_apart);
  run(fused, d_fused);
  for (int i = 0; i < 4; ++i) {
    CAPTURE(i);
    CHECK(equal_rows(apart.parts[i], fused.parts[i]));
    CHECK(equal_rows(d_apart.parts[i], d_fused.parts[i]));
  }
  CHECK_FALSE(equal_rows(d_fused.parts[0], d_fused.parts[1]));
  // One element further, and rows of o would lie in the next token's q.
  auto shifted = fused.parts[3];
  ++shifted.data;
  CHECK_THROWS_WITH(
      cpu::forward<float>(
          {.q = fused.parts[0], .k = fused.parts[1], .v = fused.parts[2], .o = shifted}, plan),
      contains("cpu::forward: o and q overlap in memory"));
}
