// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/core/storage.hpp>
#include <blockattn/kv/key_bytes.hpp>
#include <blockattn/layout/sink_token_options.hpp>
#include <blockattn/rope/rope.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace blockattn::inline BLOCKATTN_ABI::kv {

/// Everything that the keys and values of a cached block depend on. Strings may hold any bytes.
struct block_identity {
  /// (tokens) ids in the order in which the block was encoded, sink tokens included.
  std::span<const std::int32_t> tokens = {};
  /// Names the weights, for example a digest of the model file; not empty.
  std::string_view model_fingerprint = {};
  storage_format key_format = storage_format::fp32;
  storage_format value_format = storage_format::fp32;
  /// One rope for all layers, or one for each layer; none = the model has no rotary embedding.
  std::span<const rope> ropes = {};
  sink_token_options sinks = {.tokens_per_block = 0};
  /// Blocks of different tenants never match, so a hit tells no tenant what another one sent.
  std::string_view tenant_salt = {};
  /// What the block saw while it was encoded besides itself, such as a shared prefix: a
  /// cryptographic digest of it, or the bytes() of its own key. Empty = the block was encoded
  /// alone.
  std::string_view context_digest = {};
};

/// The name of a cached block: the complete identity as bytes, equal exactly when every part is
/// equal. Fields have fixed order, little-endian 64-bit numbers and length prefixes, so the bytes
/// are the same on every platform and two identities never run into one another.
class block_key {
 public:
  /// O(tokens + frequencies). Errors: an empty model_fingerprint; a number that is no enumerator.
  explicit block_key(const block_identity& identity)
      : tokens_(static_cast<index_t>(identity.tokens.size())),
        key_format_(identity.key_format),
        value_format_(identity.value_format) {
    constexpr const char* place = "block_key";
    using blockattn::detail::check_enumerator;
    check_enumerator(place, "key_format", identity.key_format, storage_format::fp16);
    check_enumerator(place, "value_format", identity.value_format, storage_format::fp16);
    check_enumerator(place, "sinks.placement", identity.sinks.placement, sink_placement::block_end);
    check_enumerator(place, "sinks.sharing", identity.sinks.sharing, sink_sharing::shared);
    check_enumerator(place, "sinks.positions", identity.sinks.positions, sink_positions::pinned);
    blockattn::detail::require(!identity.model_fingerprint.empty(),
                               "block_key: model_fingerprint is empty: blocks of different models "
                               "could not be told apart");
    detail::append_text(bytes_, format_name);
    detail::append_number(bytes_, identity.tokens.size());
    for (const std::int32_t token : identity.tokens) detail::append_token(bytes_, token);
    detail::append_text(bytes_, identity.model_fingerprint);
    detail::append_number(bytes_, static_cast<std::uint64_t>(identity.key_format));
    detail::append_number(bytes_, static_cast<std::uint64_t>(identity.value_format));
    detail::append_number(bytes_, identity.ropes.size());
    for (const rope& rotation : identity.ropes) detail::append_rope(bytes_, rotation);
    detail::append_number(bytes_, static_cast<std::uint64_t>(identity.sinks.tokens_per_block));
    detail::append_number(bytes_, static_cast<std::uint64_t>(identity.sinks.placement));
    detail::append_number(bytes_, static_cast<std::uint64_t>(identity.sinks.sharing));
    detail::append_number(bytes_, static_cast<std::uint64_t>(identity.sinks.positions));
    detail::append_text(bytes_, identity.tenant_salt);
    detail::append_text(bytes_, identity.context_digest);
  }

  /// The complete key; valid while the key lives.
  std::string_view bytes() const noexcept { return bytes_; }

  /// What a block of this key holds: a store refuses memory of another shape.
  index_t tokens() const noexcept { return tokens_; }
  storage_format key_format() const noexcept { return key_format_; }
  storage_format value_format() const noexcept { return value_format_; }

  friend bool operator==(const block_key& a, const block_key& b) noexcept {
    return a.bytes_ == b.bytes_;
  }

 private:
  /// Changes whenever the bytes of equal identities change.
  static constexpr std::string_view format_name = "blockattn block key 1";

  index_t tokens_;
  storage_format key_format_;
  storage_format value_format_;
  std::string bytes_;
};

/// The default index of a block store. A hash only finds candidates, whose bytes are then compared.
struct block_key_hash {
  std::uint64_t operator()(const block_key& key) const noexcept {
    return detail::hash_bytes(key.bytes());
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::kv
