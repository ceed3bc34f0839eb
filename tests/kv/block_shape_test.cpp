// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/kv/block_shape.hpp>
#include <limits>

#include "support/catch.hpp"
#include "support/contains.hpp"

namespace blockattn_test {

using namespace blockattn;

TEST_CASE("block_bytes counts every row once and aligns keys and values", "[kv]") {
  CHECK(kv::block_bytes({}) == 0);
  CHECK(
      kv::block_bytes({.layers = 3, .kv_heads = 2, .tokens = 16, .head_dim = 8, .value_dim = 4}) ==
      3 * (2 * 16 * 8 + 2 * 16 * 4) * 4);
  // 1 * 3 * 8 bf16 = 48 bytes and 1 * 3 * 8 fp32 = 96 bytes round up to 64 and 128.
  CHECK(kv::block_bytes({.layers = 2,
                         .kv_heads = 1,
                         .tokens = 3,
                         .head_dim = 8,
                         .value_dim = 8,
                         .key_format = storage_format::bf16}) == 2 * (64 + 128));
  CHECK(kv::block_bytes(
            {.layers = 30, .kv_heads = 3, .tokens = 0, .head_dim = 64, .value_dim = 64}) == 0);
  CHECK(kv::detail::bytes_per_value(storage_format::fp64) == 8);
  CHECK(kv::detail::bytes_per_value(storage_format::fp16) == 2);
}

TEST_CASE("check_shape refuses negative and uncountable sizes by name", "[kv]") {
  const kv::block_shape good = {
      .layers = 80, .kv_heads = 8, .tokens = 1 << 20, .head_dim = 256, .value_dim = 256};
  CHECK_NOTHROW(kv::detail::check_shape("f", good));
  for (const auto& [member, name] : {std::pair{&kv::block_shape::layers, "layers"},
                                     std::pair{&kv::block_shape::kv_heads, "kv_heads"},
                                     std::pair{&kv::block_shape::tokens, "tokens"},
                                     std::pair{&kv::block_shape::head_dim, "head_dim"},
                                     std::pair{&kv::block_shape::value_dim, "value_dim"}}) {
    kv::block_shape bad = good;
    bad.*member = -1;
    CHECK_THROWS_WITH(kv::detail::check_shape("f", bad),
                      contains(std::string("f: shape.") + name + " is -1"));
    bad.*member = std::numeric_limits<index_t>::max() / 4;
    CHECK_THROWS_WITH(kv::detail::check_shape("f", bad), contains("more bytes than can be"));
  }
}

}  // namespace blockattn_test
