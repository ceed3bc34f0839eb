// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/kv/cached_block.hpp>
#include <blockattn/rope/reposition.hpp>
#include <cmath>
#include <optional>

#include "kv/block_store_support.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

namespace blockattn_test {
namespace {

double dot(const float* a, const float* b, index_t count) {
  double sum = 0;
  for (index_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

}  // namespace

TEST_CASE("Every copy of a handle pins, and the last one to go unpins", "[kv]") {
  kv::block_store store({.byte_budget = 1024});
  kv::cached_block a = insert(store, 1);
  kv::cached_block b = a;
  CHECK(store.counters().pinned_bytes == 128);
  kv::cached_block c = std::move(a);
  CHECK_FALSE(a);
  b = kv::cached_block();
  CHECK(store.counters().pinned_bytes == 128);
  const kv::cached_block& itself = c;
  c = itself;
  CHECK(store.counters().pinned_bytes == 128);
  c = insert(store, 2);
  CHECK(store.counters().pinned_bytes == 128);
  CHECK(c.key() == key_of(2));
  CHECK(c.shape() == shape_of(1));
  c = {};
  CHECK(store.counters().pinned_bytes == 0);
  CHECK(store.counters().entries == 2);
}

TEST_CASE("A handle outlives its store", "[kv]") {
  const auto storage = counting_storage{};
  kv::cached_block block;
  {
    kv::block_store<counting_storage> store({.byte_budget = 1024}, storage);
    block = insert(store, 5, 3);
    insert(store, 6);
  }
  CHECK(holds(block, 5));
  CHECK(storage.shared->live_bytes > 0);
  block = {};
  CHECK(storage.shared->live_bytes == 0);
}

TEST_CASE("An empty handle, a wrong layer and a wrong format are refused", "[kv]") {
  kv::block_store store({.byte_budget = 1024});
  const kv::cached_block block = insert(store, 1);
  CHECK_THROWS_WITH(kv::cached_block().k<float>(0), contains("cached_block::k: the handle is"));
  CHECK_THROWS_WITH(kv::cached_block().key(), contains("the handle is empty"));
  CHECK_THROWS_WITH(block.k<float>(1), contains("layer is 1, must be in [0, 1)"));
  CHECK_THROWS_WITH(block.v<bfloat16>(0), contains("values are stored as fp32 but read as bf16"));
  CHECK_THROWS_WITH((block.segment<float, float16>(0, 0)), contains("read as fp16"));
}

TEST_CASE("One block serves two prompts at two offsets at once, unmoved", "[kv]") {
  const std::uint64_t seed = test_seed(12);
  CAPTURE(seed);
  random_source random(seed);
  const index_t dim = 16, tokens = 6;
  const rope rotation(
      {.head_dim = dim, .scaling = yarn_rope_scaling{.factor = 4, .original_context = 64}});
  const auto plain = random.normal_values<float>(tokens * dim);  // keys before rotation
  kv::block_store store({.byte_budget = 1 << 20});
  kv::block_draft draft = store.begin_insert(
      key_of(1, tokens),
      {.layers = 1, .kv_heads = 1, .tokens = tokens, .head_dim = dim, .value_dim = dim});
  const std::vector<double> own_positions = {0, 1, 2, 3, 4, 5};
  rotate(rotation, head_major(plain.data(), tokens, 1, dim), draft.k<float>(0), own_positions);
  const kv::cached_block block = store.commit(std::move(draft));

  const double far = 100000, near = 37;
  const auto at_far = block.segment(0, far);
  const auto at_near = block.segment(0, near);
  CHECK(at_far.k.data == at_near.k.data);
  CHECK(at_far.v.data == block.v<float>(0).data);
  CHECK(at_far.query_shift == -far);
  CHECK(at_near.query_shift == -near);
  CHECK(at_near.score_scale == 1.0);
  CHECK(at_near.log_weight_scale == 1.0);
  CHECK(at_near.log_weight == 0.0);

  const auto query = random.normal_values<float>(dim);
  for (const auto& segment : {at_far, at_near}) {
    const double offset = -segment.query_shift;
    const double position = offset + 11;
    std::vector<float> q = query;
    rotate(rotation, token_major(q.data(), 1, 1, dim), std::vector{position});
    std::vector<float> shifted = q;
    reposition(rotation, token_major(shifted.data(), 1, 1, dim), segment.query_shift);
    std::vector<float> placed(plain.size());
    std::vector<double> positions;
    for (const double own : own_positions) positions.push_back(offset + own);
    rotate(rotation, head_major(plain.data(), tokens, 1, dim),
           head_major(placed.data(), tokens, 1, dim), positions);
    for (index_t j = 0; j < tokens; ++j) {
      const double expected = dot(q.data(), placed.data() + j * dim, dim);
      CHECK(std::abs(dot(shifted.data(), segment.k.row(j, 0), dim) - expected) < 2e-5);
    }
  }
}

}  // namespace blockattn_test
