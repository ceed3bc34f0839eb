// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Block attention over two context blocks and a final block: who sees whom, and what comes out.

#include <array>
#include <blockattn/blockattn.hpp>
#include <cstdio>
#include <vector>

namespace ba = blockattn;

int main() {
  const auto layout = ba::block_layout::from_sequence({.context = {1, 2}, .final_block = 1});
  const auto mask = ba::block_attention_mask(layout);
  std::printf("%s", ba::picture(mask).c_str());

  const ba::index_t tokens = layout.tokens(), heads = 1, head_dim = 8;
  const std::vector<float> q(32, 1.0F), k(32, 1.0F);  // equal scores: a row averages what it sees
  std::vector<float> v(32), o(32);
  for (int i = 0; i < 32; ++i) v[static_cast<std::size_t>(i)] = static_cast<float>(i / 8);

  const auto plan = ba::make_tile_plan(mask, ba::cpu::tile_shape_for<float>(head_dim));
  ba::cpu::forward({.q = ba::token_major(q.data(), tokens, heads, head_dim),
                    .k = ba::token_major(k.data(), tokens, heads, head_dim),
                    .v = ba::token_major(v.data(), tokens, heads, head_dim),
                    .o = ba::token_major(o.data(), tokens, heads, head_dim)},
                   plan);
  for (int i = 0; i < 4; ++i)
    std::printf("token %d: %.1f\n", i, static_cast<double>(o[static_cast<std::size_t>(8 * i)]));
}

// Output:
// x...
// .x..
// .xx.
// xxxx
// token 0: 0.0
// token 1: 1.0
// token 2: 1.5
// token 3: 1.5
