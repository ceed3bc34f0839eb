// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/kv/block_key.hpp>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/contains.hpp"

namespace blockattn_test {
namespace {

using namespace blockattn;

const std::vector<std::int32_t> tokens = {1, 2, 3};
const std::vector<rope> ropes = {rope({.head_dim = 4}), rope({.head_dim = 4, .theta = 5e5})};

kv::block_identity identity() {
  return {.tokens = tokens,
          .model_fingerprint = "model",
          .key_format = storage_format::bf16,
          .value_format = storage_format::bf16,
          .ropes = ropes,
          .sinks = {.tokens_per_block = 1},
          .tenant_salt = "tenant",
          .context_digest = "context"};
}

/// Every identity that differs from identity() in one part.
std::vector<kv::block_key> keys_with_one_change() {
  std::vector<kv::block_key> keys;
  const auto add = [&](const auto& change) {
    kv::block_identity changed = identity();
    change(changed);
    keys.emplace_back(changed);
  };
  const std::vector<std::vector<std::int32_t>> other_tokens = {
      {}, {1, 2}, {1, 2, 4}, {2, 1, 3}, {1, 2, 3, 0}, {1, 2, -3}, {0x100, 2, 3}};
  for (const auto& other : other_tokens) add([&](auto& i) { i.tokens = other; });
  add([](auto& i) { i.model_fingerprint = "model2"; });
  add([](auto& i) { i.key_format = storage_format::fp32; });
  add([](auto& i) { i.value_format = storage_format::fp16; });
  add([](auto& i) { i.sinks.tokens_per_block = 2; });
  add([](auto& i) { i.sinks.placement = sink_placement::block_end; });
  add([](auto& i) { i.sinks.sharing = sink_sharing::shared; });
  add([](auto& i) { i.sinks.positions = sink_positions::pinned; });
  add([](auto& i) { i.tenant_salt = ""; });
  add([](auto& i) { i.tenant_salt = std::string_view("tenant\0", 7); });
  add([](auto& i) { i.context_digest = ""; });
  add([](auto& i) { i.context_digest = "Context"; });
  // The same characters, cut into fields elsewhere.
  add([](auto& i) { i.tenant_salt = "tenantc", i.context_digest = "ontext"; });
  add([](auto& i) { i.model_fingerprint = "modeltenant", i.tenant_salt = ""; });
  const std::vector<double> divisors = {1, 2};
  const rope first = ropes[0];
  const std::vector<std::vector<rope>> other_ropes = {
      {},
      {first},
      {ropes[1], first},
      {first, first},
      {first, rope({.head_dim = 6, .rotary_dim = 4, .theta = 5e5})},
      {first, rope({.head_dim = 4, .rotary_dim = 2, .theta = 5e5})},
      {first, rope({.head_dim = 4, .pairing = rope_pairing::interleaved, .theta = 5e5})},
      {first, rope({.head_dim = 4, .theta = 5e5, .frequency_divisors = divisors})},
      {first, rope({.head_dim = 4, .theta = 5e5, .attention_factor = 1.1})}};
  for (const auto& other : other_ropes) add([&](auto& i) { i.ropes = other; });
  return keys;
}

}  // namespace

TEST_CASE("Equal identities make equal keys from different memory", "[kv]") {
  const auto other_tokens = tokens;
  const auto other_ropes = ropes;
  kv::block_identity other = identity();
  other.tokens = other_tokens;
  other.ropes = other_ropes;
  const kv::block_key a(identity()), b(other);
  CHECK(a == b);
  CHECK(a.bytes() == b.bytes());
  CHECK(kv::block_key_hash{}(a) == kv::block_key_hash{}(b));
}

TEST_CASE("Every part of the identity separates keys", "[kv]") {
  std::vector<kv::block_key> keys = keys_with_one_change();
  keys.emplace_back(identity());
  std::set<std::string> bytes;
  std::set<std::uint64_t> hashes;
  for (const kv::block_key& key : keys) {
    bytes.emplace(key.bytes());
    hashes.insert(kv::block_key_hash{}(key));
  }
  CHECK(keys.size() == 30);
  CHECK(bytes.size() == keys.size());
  CHECK(hashes.size() == keys.size());
}

TEST_CASE("Key bytes are the same on every platform", "[kv]") {
  const kv::block_key key({.tokens = tokens, .model_fingerprint = "m"});
  const std::string_view name = "blockattn block key 1";
  REQUIRE(key.bytes().size() == 8 + name.size() + 8 + 3 * 4 + 8 + 1 + 9 * 8);
  CHECK(key.bytes().substr(0, 9) == std::string_view("\x15\0\0\0\0\0\0\0b", 9));
  CHECK(key.bytes().substr(8, name.size()) == name);
  CHECK(key.bytes().substr(8 + name.size(), 16) ==
        std::string_view("\3\0\0\0\0\0\0\0\1\0\0\0\2\0\0\0", 16));
}

TEST_CASE("The hash is the same on every platform", "[kv]") {
  // From a separate implementation.
  CHECK(kv::detail::hash_bytes("") == 0xe220a8397b1dcdafU);
  CHECK(kv::detail::hash_bytes("a") == 0x5e025f9ade9eaf3eU);
  CHECK(kv::detail::hash_bytes("block attention!?") == 0xaed585e1451ebc33U);
  CHECK(kv::detail::hash_bytes(std::string_view("a\0", 2)) != kv::detail::hash_bytes("a"));
}

TEST_CASE("A key without a model is refused", "[kv]") {
  CHECK_THROWS_WITH(kv::block_key({.tokens = tokens}), contains("model_fingerprint is empty"));
  kv::block_identity wrong = {.tokens = tokens, .model_fingerprint = "m"};
  wrong.key_format = static_cast<storage_format>(7);
  CHECK_THROWS_WITH(kv::block_key(wrong), contains("key_format is 7"));
  wrong.key_format = storage_format::fp16;
  wrong.sinks.placement = static_cast<sink_placement>(-1);
  CHECK_THROWS_WITH(kv::block_key(wrong), contains("sinks.placement is -1"));
}

}  // namespace blockattn_test
