// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <blockattn/kv/block_store.hpp>
#include <thread>
#include <vector>

#include "kv/block_store_support.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace blockattn_test {

// Meant for a build with -fsanitize=thread too.
TEST_CASE("Threads share a store that is too small for them", "[kv]") {
  const std::uint64_t seed = test_seed(13);
  CAPTURE(seed);
  constexpr int threads = 4, operations = 1500, distinct = 24;
  const index_t budget = 20 * 128 + 64;
  const auto storage = counting_storage{};
  std::atomic<int> damaged = 0, over_budget = 0, finds = 0;
  {
    kv::block_store<counting_storage> store({.byte_budget = budget}, storage);
    std::vector<std::thread> pool;
    for (int thread = 0; thread < threads; ++thread) {
      pool.emplace_back([&, thread] {
        random_source random(seed + static_cast<std::uint64_t>(thread));
        std::vector<std::pair<std::int32_t, kv::cached_block>> held;
        for (int step = 0; step < operations; ++step) {
          const auto token = static_cast<std::int32_t>(random.integer(0, distinct - 1));
          kv::cached_block block = store.find(key_of(token, 1 + token % 4));
          ++finds;
          if (!block) block = insert(store, token, 1 + token % 4);
          if (block && !holds(block, token)) ++damaged;
          if (block && random.chance(0.3)) held.emplace_back(token, block);
          if (held.size() > 3 || random.chance(0.2)) {
            for (const auto& [kept_token, kept] : held) {
              if (!holds(kept, kept_token)) ++damaged;
            }
            held.clear();
          }
          const kv::block_store_counters counters = store.counters();
          if (counters.retained_bytes + counters.draft_bytes > budget) ++over_budget;
        }
      });
    }
    for (std::thread& thread : pool) thread.join();
    const kv::block_store_counters counters = store.counters();
    CHECK(damaged == 0);
    CHECK(over_budget == 0);
    CHECK(counters.hits + counters.misses == finds);
    CHECK(counters.hits > 0);
    CHECK(counters.evictions > 0);
    CHECK(counters.insertions - counters.evictions == counters.entries);
    CHECK(counters.pinned_bytes == 0);
    CHECK(counters.draft_bytes == 0);
    CHECK(storage.shared->live_bytes == counters.retained_bytes);
    const index_t largest_block = 4 * 64;
    CHECK(storage.shared->peak_bytes <= budget + threads * largest_block);
  }
  CHECK(storage.shared->live_bytes == 0);
}

TEST_CASE("Threads that insert the same key at the same time get the same block", "[kv]") {
  kv::block_store store({.byte_budget = 1 << 20});
  for (std::int32_t token = 0; token < 50; ++token) {
    std::vector<kv::cached_block> blocks(4);
    std::vector<std::thread> pool;
    for (kv::cached_block& block : blocks) {
      pool.emplace_back([&store, &block, token] { block = insert(store, token); });
    }
    for (std::thread& thread : pool) thread.join();
    for (const kv::cached_block& block : blocks) {
      REQUIRE(block);
      CHECK(block.k<float>(0).data == blocks[0].k<float>(0).data);
      CHECK(holds(block, token));
    }
  }
  CHECK(store.counters().insertions == 50);
}

}  // namespace blockattn_test
