// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/key_chunks.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include "support/catch.hpp"
#include "support/random_attention_mask.hpp"

using namespace blockattn_test;
using cpu::detail::key_chunk_count;
using cpu::detail::key_tiles_of_chunk;

TEST_CASE("key_chunk_count gives 32 units of work, at most 8 a head and one a tile") {
  CHECK(key_chunk_count(1, 100) == 8);
  CHECK(key_chunk_count(8, 100) == 4);
  CHECK(key_chunk_count(12, 100) == 3);
  CHECK(key_chunk_count(32, 100) == 1);
  CHECK(key_chunk_count(100, 100) == 1);
  CHECK(key_chunk_count(1, 3) == 3);
  CHECK(key_chunk_count(1, 0) == 1);
  CHECK(key_chunk_count(0, 0) == 1);
}

TEST_CASE("key_chunks cover every key tile once, in order, with even work") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    random_source random(seed);
    const attention_mask mask = random_attention_mask(random, 40).mask;
    const tile_plan plan = make_tile_plan(mask, {4, random.integer(1, 9)}, {.transposed = true});
    const tile_lists& by_key = plan.by_key();
    index_t total = 0;
    index_t largest_tile = 0;
    for (const std::int64_t count : by_key.tile_count) {
      total += count;
      largest_tile = std::max(largest_tile, count);
    }
    for (index_t chunks = 1; chunks <= 8; ++chunks) {
      index_t next = 0;
      for (index_t c = 0; c < chunks; ++c) {
        const index_range tiles = key_tiles_of_chunk(by_key, c, chunks);
        CHECK(tiles.begin == next);
        CHECK(tiles.end >= tiles.begin);
        next = tiles.end;
        index_t work = 0;
        for (index_t t = tiles.begin; t < tiles.end; ++t) {
          work += by_key.tile_count[static_cast<std::size_t>(t)];
        }
        CHECK(work <= total / chunks + largest_tile + 1);
      }
      CHECK(next == by_key.outer_tiles);
    }
  }
}
