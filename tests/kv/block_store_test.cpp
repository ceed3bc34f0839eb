// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/kv/block_store.hpp>
#include <deque>
#include <map>

#include "kv/block_store_support.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

namespace blockattn_test {
namespace {

constexpr index_t token_bytes = 128;  // 32 + 32 bytes, each rounded up to 64

using store_type = kv::block_store<counting_storage>;

}  // namespace

TEST_CASE("A block is found only after its commit", "[kv]") {
  store_type store({.byte_budget = 10 * token_bytes});
  CHECK_FALSE(store.find(key_of(1)));
  kv::block_draft draft = store.begin_insert(key_of(1), shape_of(1));
  REQUIRE(draft);
  CHECK_FALSE(store.find(key_of(1)));
  CHECK(store.counters().entries == 0);
  CHECK(store.counters().draft_bytes == token_bytes);
  const kv::cached_block block = store.commit(std::move(draft));
  REQUIRE(block);
  const kv::cached_block found = store.find(key_of(1));
  REQUIRE(found);
  CHECK(found.k<float>(0).data == block.k<float>(0).data);
  const kv::block_store_counters counters = store.counters();
  CHECK(counters.hits == 1);
  CHECK(counters.misses == 2);
  CHECK(counters.insertions == 1);
  CHECK(counters.evictions == 0);
  CHECK(counters.entries == 1);
  CHECK(counters.retained_bytes == token_bytes);
  CHECK(counters.pinned_bytes == token_bytes);
  CHECK(counters.draft_bytes == 0);
}

TEST_CASE("The least recently found block leaves first", "[kv]") {
  store_type store({.byte_budget = 3 * token_bytes});
  for (const std::int32_t token : {1, 2, 3}) REQUIRE(insert(store, token));
  REQUIRE(store.find(key_of(1)));  // order of use is now 2, 3, 1
  REQUIRE(insert(store, 4));
  CHECK_FALSE(store.find(key_of(2)));
  REQUIRE(insert(store, 5));
  CHECK_FALSE(store.find(key_of(3)));
  for (const std::int32_t token : {1, 4, 5}) {
    CAPTURE(token);
    const auto block = store.find(key_of(token));
    REQUIRE(block);
    CHECK(holds(block, token));
  }
  CHECK(store.counters().evictions == 2);
}

TEST_CASE("A large block evicts several, and no more than it needs", "[kv]") {
  const auto storage = counting_storage{};
  store_type store({.byte_budget = 100 * 64}, storage);
  for (std::int32_t token = 0; token < 5; ++token) REQUIRE(insert(store, token, 20));
  REQUIRE(insert(store, 9, 50));  // 5000 of 6400 bytes in use; 3200 need three blocks of 1280
  CHECK(store.counters().evictions == 3);
  CHECK_FALSE(store.find(key_of(2, 20)));
  CHECK(store.find(key_of(3, 20)));
  CHECK(store.counters().retained_bytes == 2 * 1280 + 3200);
  CHECK(storage.shared->live_bytes == 2 * 1280 + 3200);
}

TEST_CASE("Pins block eviction, and the next block goes instead", "[kv]") {
  store_type store({.byte_budget = 2 * token_bytes});
  const kv::cached_block pinned = insert(store, 1);
  REQUIRE(insert(store, 2));
  REQUIRE(insert(store, 3));
  CHECK(store.find(key_of(1)));
  CHECK_FALSE(store.find(key_of(2)));
  CHECK(holds(pinned, 1));
}

TEST_CASE("Without room a draft is empty and nothing is lost", "[kv]") {
  store_type store({.byte_budget = 4 * token_bytes});
  REQUIRE(insert(store, 1));
  kv::cached_block pinned = insert(store, 2);
  SECTION("a block larger than the budget") {
    CHECK_FALSE(insert(store, 3, 9));
    CHECK(store.find(key_of(1)));
    CHECK(store.find(key_of(2)));
  }
  SECTION("a budget taken by pins") {
    CHECK_FALSE(store.begin_insert(key_of(3, 8), shape_of(8)));
    CHECK(store.find(key_of(1)));
    CHECK(store.find(key_of(2)));
    pinned = {};
    CHECK(insert(store, 3, 8));
    CHECK(store.counters().entries == 1);
  }
  SECTION("a budget taken by drafts") {
    kv::block_draft draft = store.begin_insert(key_of(3, 4), shape_of(4));
    REQUIRE(draft);
    CHECK_FALSE(store.begin_insert(key_of(4, 4), shape_of(4)));
    CHECK(store.find(key_of(1)));
    draft = {};
    CHECK(store.begin_insert(key_of(4, 4), shape_of(4)));
  }
  CHECK(store.counters().refusals == 1);
  CHECK(store.counters().draft_bytes == 0);
  CHECK_FALSE(store.commit({}));
}

TEST_CASE("Storage without memory refuses the draft and gives the room back", "[kv]") {
  const auto storage = counting_storage{};
  store_type store({.byte_budget = 2 * token_bytes}, storage);
  storage.shared->exhausted = true;
  CHECK_FALSE(insert(store, 1));
  CHECK(store.counters().refusals == 1);
  CHECK(store.counters().draft_bytes == 0);
  storage.shared->exhausted = false;
  CHECK(insert(store, 1));
}

TEST_CASE("The first of two commits of a key wins", "[kv]") {
  const auto storage = counting_storage{};
  store_type store({.byte_budget = 4 * token_bytes}, storage);
  kv::block_draft first = store.begin_insert(key_of(1), shape_of(1));
  kv::block_draft second = store.begin_insert(key_of(1), shape_of(1));
  REQUIRE(first);
  REQUIRE(second);
  first.k<float>(0).row(0, 0)[0] = 10;
  second.k<float>(0).row(0, 0)[0] = 20;
  const auto kept = store.commit(std::move(first));
  const auto same = store.commit(std::move(second));
  CHECK(kept.k<float>(0).data == same.k<float>(0).data);
  CHECK(same.k<float>(0).row(0, 0)[0] == 10);
  CHECK(store.counters().insertions == 1);
  CHECK(store.counters().draft_bytes == 0);
  CHECK(storage.shared->live_bytes == token_bytes);
  kv::block_shape two_layers = shape_of(1);
  two_layers.layers = 2;
  kv::block_draft other = store.begin_insert(key_of(1), two_layers);
  CHECK_THROWS_WITH(store.commit(std::move(other)),
                    contains("another shape") && contains("(1 layers of 1 tokens, not 2 of 1)"));
  CHECK(store.counters().draft_bytes == 0);
}

TEST_CASE("Keys with equal hashes stay apart through find, insert and eviction", "[kv]") {
  for (const std::int32_t victim : {1, 2, 3}) {  // first, middle and last of the chain
    CAPTURE(victim);
    kv::block_store<counting_storage, constant_hash> store({.byte_budget = 3 * token_bytes});
    for (const std::int32_t token : {1, 2, 3}) REQUIRE(insert(store, token));
    for (const std::int32_t token : {3, 1, 2}) {
      const auto block = store.find(key_of(token));
      REQUIRE(block);
      CHECK(holds(block, token));
    }
    CHECK_FALSE(store.find(key_of(4)));
    for (const std::int32_t token : {1, 2, 3}) {
      if (token != victim) REQUIRE(store.find(key_of(token)));
    }
    REQUIRE(insert(store, 4));
    for (const std::int32_t token : {1, 2, 3, 4}) {
      CAPTURE(token);
      const auto block = store.find(key_of(token));
      CHECK(static_cast<bool>(block) == (token != victim));
      if (block) CHECK(holds(block, token));
    }
  }
}

TEST_CASE("The same tokens of another tenant, model or context are other blocks", "[kv]") {
  kv::block_store<kv::heap_storage, constant_hash> store({.byte_budget = 4096});
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  const kv::block_identity base = {.tokens = tokens, .model_fingerprint = "a"};
  kv::block_identity tenant = base, model = base, context = base;
  tenant.tenant_salt = "t";
  model.model_fingerprint = "b";
  const kv::block_key prefix = key_of(9);
  context.context_digest = prefix.bytes();
  REQUIRE(store.commit(store.begin_insert(kv::block_key(base), shape_of(3))));
  for (const kv::block_identity& other : {tenant, model, context}) {
    CHECK_FALSE(store.find(kv::block_key(other)));
  }
  CHECK(store.find(kv::block_key(base)));
}

TEST_CASE("Blocks without tokens and a store without budget are legal", "[kv]") {
  store_type store({.byte_budget = 0});
  const auto block = insert(store, 1, 0);
  REQUIRE(block);
  CHECK(block.k<float>(0).tokens == 0);
  CHECK(store.find(key_of(1, 0)));
  CHECK_FALSE(insert(store, 2, 1));
  CHECK(store.find(key_of(1, 0)));
}

TEST_CASE("A store refuses a negative budget, bad shapes and foreign drafts", "[kv]") {
  CHECK_THROWS_WITH(store_type({.byte_budget = -1}), contains("byte_budget is -1"));
  store_type store({.byte_budget = 1024}), other({.byte_budget = 1024});
  CHECK_THROWS_WITH(store.begin_insert(key_of(1), shape_of(-1)), contains("tokens is -1"));
  CHECK_THROWS_WITH(store.begin_insert(key_of(1, 100), shape_of(50)),
                    contains("the key names 100 tokens but shape.tokens is 50"));
  auto half = shape_of(1);
  half.value_format = storage_format::fp16;
  CHECK_THROWS_WITH(store.begin_insert(key_of(1), half),
                    contains("the key says fp32 keys and fp32 values but the shape fp32 and fp16"));
  half.value_format = static_cast<storage_format>(4);
  CHECK_THROWS_WITH(store.begin_insert(key_of(1), half), contains("shape.value_format is 4"));
  CHECK_THROWS_WITH(store.commit(other.begin_insert(key_of(1), shape_of(1))),
                    contains("another store"));
  CHECK(other.counters().draft_bytes == 0);
}

TEST_CASE("Random use agrees with a simple model of an LRU cache", "[kv]") {
  const std::uint64_t seed = test_seed(11);
  CAPTURE(seed);
  random_source random(seed);
  const index_t budget = 12 * 64;
  const auto storage = counting_storage{};
  store_type store({.byte_budget = budget}, storage);
  std::deque<std::int32_t> by_use;  // the model: most recently used first
  std::map<std::int32_t, std::vector<kv::cached_block>> pins;
  const auto size_of = [](std::int32_t token) { return 64 * index_t{2 + token % 3 * 2}; };
  const auto tokens_of = [](std::int32_t token) { return index_t{1 + token % 3 * 2}; };
  std::int64_t hits = 0, misses = 0;
  for (int step = 0; step < 2000; ++step) {
    const auto token = static_cast<std::int32_t>(random.integer(0, 11));
    CAPTURE(step, token);
    auto place = std::find(by_use.begin(), by_use.end(), token);
    kv::cached_block block = store.find(key_of(token, tokens_of(token)));
    REQUIRE(static_cast<bool>(block) == (place != by_use.end()));
    ++(block ? hits : misses);
    if (place != by_use.end()) {
      by_use.erase(place);
      by_use.push_front(token);
    } else {
      index_t used = 0, unpinned = 0;
      for (const std::int32_t other : by_use) {
        used += size_of(other);
        if (pins[other].empty()) unpinned += size_of(other);
      }
      const bool fits = used - unpinned + size_of(token) <= budget;
      while (fits && used + size_of(token) > budget) {
        const auto victim = std::find_if(by_use.rbegin(), by_use.rend(),
                                         [&](std::int32_t other) { return pins[other].empty(); });
        used -= size_of(*victim);
        by_use.erase(std::next(victim).base());
      }
      block = insert(store, token, tokens_of(token));
      REQUIRE(static_cast<bool>(block) == fits);
      if (fits) by_use.push_front(token);
    }
    if (block) REQUIRE(holds(block, token));
    if (block && random.chance(0.2)) pins[token].push_back(block);
    auto& some = pins[static_cast<std::int32_t>(random.integer(0, 11))];
    if (!some.empty() && random.chance(0.7)) some.pop_back();
    REQUIRE(store.counters().retained_bytes <= budget);
    REQUIRE(storage.shared->live_bytes == store.counters().retained_bytes);
  }
  CHECK(store.counters().hits == hits);
  CHECK(store.counters().misses == misses);
  CHECK(store.counters().evictions > 100);
  CHECK(store.counters().refusals > 10);
  CHECK(storage.shared->peak_bytes <= budget);
}

}  // namespace blockattn_test
