// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace distillation {

namespace ba = blockattn;

/// How large the documents are: `blocks` token blocks of facts in front of a final block of
/// questions.
struct document_size {
  ba::index_t fewest_blocks = 8;
  ba::index_t most_blocks = 8;  ///< each sequence draws its number of blocks between the two
  ba::index_t sentences_per_block = 4;
};

/// What the token behind a token is, as far as the metrics care.
enum class target_kind : std::uint8_t {
  none,      ///< nothing: the last token of a sequence
  text,      ///< a word that mostly cannot be known before
  restated,  ///< in a context block: a city that follows from what was said before
  direct,    ///< answer of a question about a fact that stands in one sentence
  relative,  ///< answer of a question about a fact that crosses a block border
};

/// Several sequences on one source axis (without sinks).
struct batch {
  ba::block_layout layout;
  std::vector<int> ids;            ///< (tokens)
  std::vector<int> next;           ///< (tokens) the id behind each token, 0 where there is none
  std::vector<target_kind> kinds;  ///< (tokens) of `next`
};

/// Where the country is named: a block number within the sequence.
inline constexpr ba::index_t country_block = 1;

inline bool is_answer(target_kind kind) {
  return kind == target_kind::direct || kind == target_kind::relative;
}

/// A language of facts about who lives where, made so that facts cross block borders:
///
///     anna paris .          a direct fact; a later block may repeat it
///     in italy .            a block of its own, the second, in documents of several blocks
///     boris capital .       a relative fact: boris lives in the capital of the country
///     boris capital rome .  the same, restated
///     ? boris rome          a question of the final block, and its answer
///
/// With full attention the token "capital" can look back at the country and know Rome; predicting
/// the restated facts teaches a model to do so. A block that is encoded alone does not know the
/// country: the final block then has to fetch the role and the country and to join them itself.
///
/// Equal seeds draw equal sequences. Sequences are drawn until they hold at least `tokens` tokens.
batch draw_batch(const document_size& size, ba::index_t tokens, std::uint64_t seed);

/// Number of words, and the words.
int vocabulary_size();
std::string word(int id);

}  // namespace distillation
