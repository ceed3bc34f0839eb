// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// One cached block serves two prompts at two offsets at the same time, read in place: the queries
// turn, the keys stay.

#include <array>
#include <blockattn/blockattn.hpp>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace ba = blockattn;

namespace {

constexpr ba::index_t heads = 2, head_dim = 16, block_tokens = 5;
using rows = std::vector<float>;

rows random_rows(ba::index_t tokens, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  rows values(static_cast<std::size_t>(tokens * heads * head_dim));
  for (float& value : values) value = normal(engine);
  return values;
}

template <class T>
auto view(T* values, ba::index_t tokens) {
  return ba::token_major(values, tokens, heads, head_dim);
}

/// Positions begin, begin + 1, ...
std::vector<double> positions(double begin, ba::index_t count) {
  std::vector<double> p;
  for (ba::index_t i = 0; i < count; ++i) p.push_back(begin + static_cast<double>(i));
  return p;
}

}  // namespace

int main() {
  const ba::rope rope({.head_dim = head_dim});
  const rows raw_k = random_rows(block_tokens, 1), v = random_rows(block_tokens, 2);
  rows cached_k = raw_k;  // encoded once, rotated for positions 0, 1, ... of the block itself
  ba::rotate(rope, view(cached_k.data(), block_tokens), positions(0, block_tokens));

  const std::array offsets = {7.0, 1000.0};  // where the two prompts place the block
  std::array<ba::key_segment<float>, 2> segments;
  std::array<ba::attend_sequence<float>, 2> prompts;
  rows q = random_rows(2, 3), o(q.size());
  for (std::size_t p = 0; p < 2; ++p) {
    segments[p] = {.k = view(cached_k.data(), block_tokens),
                   .v = view(v.data(), block_tokens),
                   .query_shift = -offsets[p]};
    const auto row = static_cast<ba::index_t>(p);
    prompts[p] = {.queries = {row, row + 1}, .segments = {&segments[p], 1}};
    ba::rotate(rope, ba::token_slice(view(q.data(), 2), row, 1), positions(offsets[p] + 20, 1));
  }
  ba::cpu::attend_blocks({.q = view(q.data(), 2), .o = view(o.data(), 2), .sequences = prompts},
                         {.rope = &rope});

  for (std::size_t p = 0; p < 2; ++p) {  // the same with keys rewritten for each place
    rows moved_k = raw_k, expected(o.size() / 2);
    ba::rotate(rope, view(moved_k.data(), block_tokens), positions(offsets[p], block_tokens));
    const auto plan = ba::make_tile_plan(ba::full_mask(1, block_tokens),
                                         ba::cpu::tile_shape_for<float>(head_dim));
    ba::cpu::forward({.q = ba::token_slice(view(q.data(), 2), static_cast<ba::index_t>(p), 1),
                      .k = view(moved_k.data(), block_tokens),
                      .v = view(v.data(), block_tokens),
                      .o = view(expected.data(), 1)},
                     plan);
    float difference = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      difference = std::max(difference, std::abs(expected[i] - o[p * expected.size() + i]));
    }
    std::printf("offset %g: %s\n", offsets[p],
                difference < 1e-5F ? "equal to rewritten keys" : "different");
  }
}

// Output:
// offset 7: equal to rewritten keys
// offset 1000: equal to rewritten keys
