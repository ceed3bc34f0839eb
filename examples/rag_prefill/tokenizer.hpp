// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"

namespace rag {

using token = std::int32_t;

/// The byte-level BPE tokenizer that a GGUF file of kind "gpt2" with pre-tokenizer "smollm" holds.
class tokenizer {
 public:
  explicit tokenizer(const gguf_file& file);

  /// Plain text to tokens. Names of special tokens inside the text stay text: a document cannot end
  /// the user's turn. Bytes for which the vocabulary has no token are dropped, as llama.cpp does
  /// (some control characters; bytes that no UTF-8 text has).
  std::vector<token> encode(std::string_view text) const;

  /// The bytes of the tokens; special tokens appear by name.
  std::string decode(std::span<const token> tokens) const;

  /// The special token of that name, for example "<|im_start|>".
  token special(const std::string& name) const;

  /// Generation ends with this token.
  token end_of_turn() const { return end_of_turn_; }
  std::int64_t vocabulary_size() const { return static_cast<std::int64_t>(bytes_of_.size()); }

 private:
  struct merge {
    std::int32_t rank;
    token result;
  };
  static std::uint64_t pair_key(token left, token right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32U |
           static_cast<std::uint32_t>(right);
  }
  void append_word(std::string_view word, std::vector<token>& tokens) const;

  std::vector<std::string> bytes_of_;                ///< (vocabulary) what a token decodes to
  std::array<token, 256> token_of_byte_{};           ///< -1 = no such token
  std::unordered_map<std::uint64_t, merge> merges_;  ///< by pair_key
  std::unordered_map<std::string, token> specials_;
  token end_of_turn_ = 0;
};

}  // namespace rag
