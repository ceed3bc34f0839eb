// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace distillation {

namespace ba = blockattn;

/// How large the documents are. A sequence is `context_blocks` token blocks of facts and a final
/// block of questions.
struct task_options {
  ba::index_t context_blocks = 8;
  ba::index_t fewest_blocks = 8;
  ba::index_t sentences_per_block = 4;
  ba::index_t questions = 8;
  double linked = 0.6;    ///< share of sentences, from the second block on, that point back
  double restated = 0.5;  ///< share of those that also state what follows
  friend bool operator==(const task_options&, const task_options&) = default;
};

/// What the token behind a token is, as far as the metrics care.
enum class target_kind : std::uint8_t {
  none,     ///< nothing: the last token of a sequence
  text,     ///< a word that mostly cannot be known before
  restated, ///< in a context block: a city that follows from an earlier block
  direct,   ///< answer of a question about a fact that stands in one sentence
  linked,   ///< answer of a question about a fact that crosses a block border
};

/// Several sequences on one source axis (without sinks).
struct batch {
  ba::block_layout layout;
  std::vector<int> ids;            ///< (tokens)
  std::vector<int> next;           ///< (tokens) the id behind each token, 0 where there is none
  std::vector<target_kind> kinds;  ///< (tokens) of `next`
};

/// A language of facts about where people live, made so that facts cross block borders:
///
///     anna in rome .          a direct fact
///     boris with anna .       a link: boris lives where anna lives, which an earlier block says
///     boris with anna rome .  the same, restated
///     ? boris rome            a question of the final block, and its answer
///
/// With full attention the second "anna" can look back and know Rome, and a restated link teaches a
/// model to do so. A block that is encoded alone cannot: the final block then has to follow the
/// link itself, from boris to anna and from anna to rome.
class task {
 public:
  explicit task(const task_options& options) : options_(options) {}

  /// Number of words.
  static int vocabulary();
  static std::string word(int id);

  /// The same sequences for the same seed.
  batch draw(ba::index_t sequences, std::uint64_t seed) const;

 private:
  task_options options_;
};

}  // namespace distillation
