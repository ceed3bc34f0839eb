// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <span>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace rag {

namespace ba = blockattn;

/// A text that becomes one token block.
struct document {
  std::string name;
  std::string text;
};

/// Reads text files. A missing or empty one is an `input_error`.
std::vector<document> read_documents(std::span<const std::string> paths);

/// Token blocks: the instruction, one block for each document, and the question as final block.
struct prompt {
  std::vector<std::vector<token>> blocks;

  ba::block_layout layout() const;
  /// All blocks one after the other.
  std::vector<token> tokens() const;
  std::span<const token> final_block() const { return blocks.back(); }
  /// The blocks before the final one.
  std::span<const std::vector<token>> context() const {
    return std::span(blocks).first(blocks.size() - 1);
  }
};

inline constexpr std::size_t longest_question = 64;  ///< tokens, without the chat template

/// Wraps everything into the ChatML turns that the model was trained with. A question that is empty
/// or longer than `longest_question` is an `input_error`.
prompt make_prompt(const tokenizer& words,
                   std::span<const document> documents,
                   const std::string& question);

/// The same prompt with its documents in another order: place i takes document order[i].
prompt reordered(const prompt& original, std::span<const std::size_t> order);

}  // namespace rag
