// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "split_words.hpp"

#include <unicode/uchar.h>

#include <array>
#include <cstdint>
#include <limits>

#include "input_error.hpp"
#include "utf8.hpp"

namespace rag {
namespace {

enum class character_class { letter, number, space, symbol };

/// One code point of the text.
struct character {
  std::size_t begin;  ///< byte offset
  UChar32 code;       ///< negative when the bytes are not UTF-8
  character_class kind;
};

character_class classify(UChar32 code) {
  if (code < 0) return character_class::symbol;
  if (u_isUWhiteSpace(code)) return character_class::space;
  const std::uint32_t category = U_GET_GC_MASK(code);
  if (category & U_GC_L_MASK) return character_class::letter;
  if (category & U_GC_N_MASK) return character_class::number;
  return character_class::symbol;
}

/// The code points of `text`.
std::vector<character> decode(std::string_view text) {
  std::vector<character> characters;
  characters.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t begin = i;
    const UChar32 code = next_code_point(text, i);
    characters.push_back({begin, code, classify(code)});
  }
  return characters;
}

/// Cuts the characters [begin, end), none of them a number.
class word_scanner {
 public:
  word_scanner(const std::vector<character>& characters, std::size_t end)
      : characters_(characters), end_(end) {}

  /// Where the word that starts at `begin` ends. The branches stand in the order of the expression.
  std::size_t word_end(std::size_t begin) const {
    if (const std::size_t length = contraction(begin); length > 0) return begin + length;
    const bool skip_space = characters_[begin].code == ' ' && begin + 1 < end_ &&
                            !is(begin + 1, character_class::space);
    const std::size_t first = skip_space ? begin + 1 : begin;
    const character_class kind = characters_[first].kind;
    const std::size_t end = run_end(first, kind);
    if (kind != character_class::space) return end;
    // A run of spaces leaves its last one to the word that follows, unless it has only one.
    return end == end_ || end - begin == 1 ? end : end - 1;
  }

 private:
  bool is(std::size_t i, character_class kind) const { return characters_[i].kind == kind; }

  std::size_t run_end(std::size_t i, character_class kind) const {
    while (i < end_ && is(i, kind)) ++i;
    return i;
  }

  /// Characters of 's, 't, 're, 've, 'm, 'll or 'd at `begin`; else 0.
  std::size_t contraction(std::size_t begin) const {
    static constexpr std::array<std::string_view, 7> endings = {"'s", "'t",  "'re", "'ve",
                                                                "'m", "'ll", "'d"};
    for (const std::string_view ending : endings) {
      std::size_t matched = 0;
      while (matched < ending.size() && begin + matched < end_ &&
             characters_[begin + matched].code == ending[matched]) {
        ++matched;
      }
      if (matched == ending.size()) return matched;
    }
    return 0;
  }

  const std::vector<character>& characters_;
  std::size_t end_;
};

}  // namespace

std::vector<std::string_view> split_words(std::string_view text) {
  require(text.size() <= std::numeric_limits<std::int32_t>::max(), "a text of ", text.size(),
          " bytes is too long to tokenize");
  const std::vector<character> characters = decode(text);
  std::vector<std::string_view> words;
  const auto add = [&](std::size_t begin, std::size_t end) {
    const std::size_t first = characters[begin].begin;
    const std::size_t last = end < characters.size() ? characters[end].begin : text.size();
    words.push_back(text.substr(first, last - first));
  };
  for (std::size_t i = 0; i < characters.size();) {
    if (characters[i].kind == character_class::number) {
      add(i, i + 1);
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < characters.size() && characters[end].kind != character_class::number) ++end;
    const word_scanner scanner(characters, end);
    while (i < end) {
      const std::size_t next = scanner.word_end(i);
      add(i, next);
      i = next;
    }
  }
  return words;
}

}  // namespace rag
