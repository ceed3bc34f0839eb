// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/kv/block_draft.hpp>
#include <cstdint>

#include "kv/block_store_support.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

namespace blockattn_test {
namespace {

const kv::block_shape mixed = {.layers = 3,
                               .kv_heads = 2,
                               .tokens = 5,
                               .head_dim = 12,
                               .value_dim = 8,
                               .key_format = storage_format::bf16,
                               .value_format = storage_format::fp32};

kv::block_key key_of_mixed() {
  const std::vector<std::int32_t> tokens = {1, 2, 3, 4, 5};
  return kv::block_key({.tokens = tokens,
                        .model_fingerprint = "model",
                        .key_format = mixed.key_format,
                        .value_format = mixed.value_format});
}

}  // namespace

TEST_CASE("The rows of a draft cover its memory without overlap", "[kv]") {
  kv::block_store store({.byte_budget = kv::block_bytes(mixed)});
  const kv::block_draft draft = store.begin_insert(key_of_mixed(), mixed);
  REQUIRE(draft);
  const std::byte* const begin = reinterpret_cast<const std::byte*>(draft.k<bfloat16>(0).data);
  std::vector<int> writers(static_cast<std::size_t>(kv::block_bytes(mixed)), 0);
  const auto mark = [&](const void* row, index_t bytes) {
    const auto first = static_cast<const std::byte*>(row) - begin;
    for (index_t i = 0; i < bytes; ++i) ++writers.at(static_cast<std::size_t>(first + i));
  };
  for (index_t layer = 0; layer < mixed.layers; ++layer) {
    const auto k = draft.k<bfloat16>(layer);
    const auto v = draft.v<float>(layer);
    CHECK(k.tokens == 5);
    CHECK(k.heads == 2);
    CHECK(k.head_dim == 12);
    CHECK(v.head_dim == 8);
    CHECK(k.token_stride == 12);  // the rows of one head follow one another
    CHECK(v.token_stride == 8);
    CHECK(reinterpret_cast<std::uintptr_t>(k.data) % 64 == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(v.data) % 64 == 0);
    for (index_t t = 0; t < 5; ++t) {
      for (index_t h = 0; h < 2; ++h) {
        mark(k.row(t, h), 12 * 2);
        mark(v.row(t, h), 8 * 4);
      }
    }
  }
  index_t written = 0;
  bool overlap = false;
  for (const int count : writers) {
    written += count;
    overlap = overlap || count > 1;
  }
  CHECK_FALSE(overlap);
  CHECK(written == 3 * 5 * 2 * (12 * 2 + 8 * 4));
}

TEST_CASE("A draft checks layer and storage format", "[kv]") {
  kv::block_store store({.byte_budget = kv::block_bytes(mixed)});
  const kv::block_draft draft = store.begin_insert(key_of_mixed(), mixed);
  CHECK_THROWS_WITH(draft.k<bfloat16>(3), contains("block_draft::k: layer is 3"));
  CHECK_THROWS_WITH(draft.v<float>(-1), contains("block_draft::v: layer is -1"));
  CHECK_THROWS_WITH(draft.k<float>(0), contains("keys are stored as bf16 but read as fp32"));
  CHECK_THROWS_WITH(draft.v<float16>(0), contains("values are stored as fp32 but read as fp16"));
  CHECK_THROWS_WITH(kv::block_draft().k<float>(0), contains("the draft is empty"));
}

TEST_CASE("A dropped, moved or overwritten draft gives its room back once", "[kv]") {
  const auto storage = counting_storage{};
  kv::block_store<counting_storage> store({.byte_budget = 1024}, storage);
  {
    kv::block_draft a = store.begin_insert(key_of(1, 2), shape_of(2));
    kv::block_draft b = std::move(a);
    CHECK(store.counters().draft_bytes == 128);
    b = store.begin_insert(key_of(2, 4), shape_of(4));
    CHECK(store.counters().draft_bytes == 256);
    CHECK(storage.shared->live_bytes == 256);
  }
  CHECK(store.counters().draft_bytes == 0);
  CHECK(storage.shared->live_bytes == 0);
  CHECK(store.counters().entries == 0);
}

}  // namespace blockattn_test
