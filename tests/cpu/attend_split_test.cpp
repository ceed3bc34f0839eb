// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/attend_split.hpp>

#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using cpu::detail::key_chunk;

namespace {

key_segment<> segment_of(index_t keys, index_t partition) {
  return {.k = {.tokens = keys}, .v = {.tokens = keys}, .partition = partition};
}

struct numbered_chunk {
  key_chunk chunk;
  std::size_t partition;
};

std::vector<numbered_chunk> chunks_of(const attend_sequence<>& sequence, index_t chunk_keys) {
  std::vector<numbered_chunk> chunks;
  cpu::detail::for_each_chunk(cpu::detail::segment_list(sequence), chunk_keys,
                              [&](const key_chunk& chunk, std::size_t partition) {
                                chunks.push_back({chunk, partition});
                              });
  return chunks;
}

}  // namespace

TEST_CASE("segment_list has the tail as its last segment", "[attend_split]") {
  const std::vector<key_segment<>> segments = {segment_of(3, 1), segment_of(0, 1),
                                               segment_of(5, 2)};
  const attend_sequence<> sequence{
      .queries = {0, 1}, .segments = segments, .tail = segment_of(7, 2)};
  const cpu::detail::segment_list list(sequence);
  REQUIRE(list.size() == 4);
  CHECK(list[0].k.tokens == 3);
  CHECK(list[3].k.tokens == 7);
  CHECK(list.is_tail(3));
  CHECK_FALSE(list.is_tail(2));
  CHECK(list.partition_end(0) == 2);
  CHECK(list.partition_end(2) == 4);  // the tail joins its neighbour's partition
  CHECK(list.keys(0, 2) == 3);
  CHECK(list.keys(0, 4) == 15);
  CHECK(list.keys(2, 2) == 0);
}

TEST_CASE("a sequence without keys has no chunks", "[attend_split]") {
  CHECK(chunks_of({}, 512).empty());
  const std::vector<key_segment<>> empty = {segment_of(0, 0), segment_of(0, 3)};
  CHECK(chunks_of({.queries = {}, .segments = empty}, 512).empty());
}

TEST_CASE("chunks cover every key once, in order, within one partition", "[attend_split]") {
  const std::uint64_t seed = test_seed(91);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 300; ++round) {
    CAPTURE(round);
    std::vector<key_segment<>> segments;
    for (index_t s = random.integer(0, 6); s > 0; --s) {
      segments.push_back(
          segment_of(random.chance(0.3) ? 0 : random.integer(1, 40), random.integer(0, 2)));
    }
    const attend_sequence<> sequence{
        .queries = {},
        .segments = segments,
        .tail = segment_of(random.integer(0, 20), random.integer(0, 2))};
    const cpu::detail::segment_list list(sequence);
    const index_t chunk_keys = random.integer(1, 50);

    // (segment, key) pairs in the order in which the chunks name them.
    std::vector<std::pair<index_t, index_t>> named;
    std::size_t next_partition = 0;
    const auto chunks = chunks_of(sequence, chunk_keys);
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const auto& [chunk, partition] = chunks[c];
      CHECK_FALSE(chunk.keys.empty());
      CHECK(chunk.keys.size() <= chunk_keys);
      const bool new_partition = c == 0 || chunks[c - 1].chunk.first_segment != chunk.first_segment;
      if (new_partition) ++next_partition;
      CHECK(partition + 1 == next_partition);
      index_t first = 0;
      for (index_t s = chunk.first_segment; s < chunk.end_segment; ++s) {
        CHECK(list[s].partition == list[chunk.first_segment].partition);
        for (index_t key = 0; key < list[s].k.tokens; ++key) {
          if (chunk.keys.contains(first + key)) named.emplace_back(s, key);
        }
        first += list[s].k.tokens;
      }
    }
    std::vector<std::pair<index_t, index_t>> all;
    for (index_t s = 0; s < list.size(); ++s) {
      for (index_t key = 0; key < list[s].k.tokens; ++key) all.emplace_back(s, key);
    }
    CHECK(named == all);
    CHECK(cpu::detail::count_chunks(list, chunk_keys) == static_cast<index_t>(chunks.size()));
  }
}

TEST_CASE("no task has more than a sixteenth of the work, nor fewer keys than a merge is worth",
          "[attend_split]") {
  using cpu::detail::keys_per_chunk;
  CHECK(keys_per_chunk(16 * 100000) >= 100000);  // sixteen row tiles: no merge at all
  CHECK(keys_per_chunk(300) >= 300);             // too short to cut
  for (const index_t row_tiles : {1, 2, 3, 9, 15}) {
    for (const index_t keys : {512, 513, 4096, 32768, 1000000}) {
      CAPTURE(row_tiles, keys);
      const index_t chunk = keys_per_chunk(row_tiles * keys);
      CHECK(chunk >= 512);
      const index_t tasks = row_tiles * ceil_divide(keys, chunk);
      CHECK(tasks <= 2 * 16);
      if (keys >= 16 * 512) CHECK(tasks >= 12);
    }
  }
  // One long sequence beside fifteen short ones is cut, though there are row tiles enough.
  CHECK(keys_per_chunk(128 * 1024 + 15 * 100) <= 128 * 1024 / 8);
  CHECK(keys_per_chunk(0) > 0);
}
