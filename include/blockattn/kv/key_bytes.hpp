// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <blockattn/rope/rope.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

/// \file
/// How a block_key is written down and hashed, byte by byte, so that neither depends on the
/// machine.

namespace blockattn::inline BLOCKATTN_ABI::kv::detail {

inline void append_little_endian(std::string& bytes, std::uint64_t value, int count) {
  for (int i = 0; i < count; ++i) bytes.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

inline void append_number(std::string& bytes, std::uint64_t value) {
  append_little_endian(bytes, value, 8);
}

inline void append_token(std::string& bytes, std::int32_t token) {
  append_little_endian(bytes, static_cast<std::uint32_t>(token), 4);
}

inline void append_real(std::string& bytes, double value) {
  append_number(bytes, std::bit_cast<std::uint64_t>(value));
}

/// Length first: no text can be continued into the next field.
inline void append_text(std::string& bytes, std::string_view text) {
  append_number(bytes, text.size());
  bytes.append(text);
}

inline void append_rope(std::string& bytes, const rope& rotation) {
  append_number(bytes, static_cast<std::uint64_t>(rotation.head_dim()));
  append_number(bytes, static_cast<std::uint64_t>(rotation.rotary_dim()));
  append_number(bytes, static_cast<std::uint64_t>(rotation.pairing()));
  append_real(bytes, rotation.attention_factor());
  for (const double frequency : rotation.frequencies()) append_real(bytes, frequency);
}

/// A bijection of 64-bit words in which every input bit reaches every output bit: the finaliser of
/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
constexpr std::uint64_t scrambled(std::uint64_t word) noexcept {
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9U;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebU;
  return word ^ (word >> 31);
}

/// Chains eight bytes at a time, little-endian; the length starts the chain, so trailing zeros
/// count. Not cryptographic: whoever finds collisions makes a store slow, never wrong.
inline std::uint64_t hash_bytes(std::string_view bytes) noexcept {
  constexpr std::uint64_t golden_ratio = 0x9e3779b97f4a7c15U;
  std::uint64_t hash = scrambled(bytes.size() + golden_ratio);
  for (std::size_t begin = 0; begin < bytes.size(); begin += 8) {
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < 8 && begin + i < bytes.size(); ++i) {
      word |= std::uint64_t{static_cast<unsigned char>(bytes[begin + i])} << (8 * i);
    }
    hash = scrambled((hash ^ word) + golden_ratio);
  }
  return hash;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::kv::detail
