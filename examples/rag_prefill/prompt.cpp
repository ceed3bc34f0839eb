// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "prompt.hpp"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "input_error.hpp"

namespace rag {
namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good() && !std::filesystem::is_directory(path), path,
          ": the document cannot be opened");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::size_t end = text.find_last_not_of(" \t\r\n");
  require(end != std::string::npos, path, ": the document is empty");
  return text.substr(0, end + 1);
}

/// Builds token blocks out of special tokens and text.
class block_writer {
 public:
  explicit block_writer(const tokenizer& words) : words_(words) {}

  block_writer& special(const std::string& name) {
    tokens_.push_back(words_.special(name));
    return *this;
  }
  block_writer& text(const std::string& text) {
    const std::vector<token> tokens = words_.encode(text);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    return *this;
  }
  std::vector<token> take() { return std::exchange(tokens_, {}); }

 private:
  const tokenizer& words_;
  std::vector<token> tokens_;
};

}  // namespace

std::vector<document> read_documents(std::span<const std::string> paths) {
  std::vector<document> documents;
  for (const std::string& path : paths) {
    documents.push_back({std::filesystem::path(path).stem().string(), read_text(path)});
  }
  return documents;
}

prompt make_prompt(const tokenizer& words,
                   std::span<const document> documents,
                   const std::string& question) {
  const std::size_t length = words.encode(question).size();
  require(0 < length && length <= longest_question, "the question has ", length,
          " tokens, must have 1 to ", longest_question);
  prompt result;
  block_writer block(words);
  // The system message is the one of the model's own chat template.
  block.special("<|im_start|>")
      .text("system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face")
      .special("<|im_end|>")
      .text("\n")
      .special("<|im_start|>")
      .text("user\nRead these documents, then answer the question.\n\n");
  result.blocks.push_back(block.take());
  for (const document& d : documents) result.blocks.push_back(block.text(d.text + "\n\n").take());
  block.text("Question: " + question)
      .special("<|im_end|>")
      .text("\n")
      .special("<|im_start|>")
      .text("assistant\n");
  result.blocks.push_back(block.take());
  return result;
}

prompt reordered(const prompt& original, std::span<const std::size_t> order) {
  prompt result = original;
  for (std::size_t i = 0; i < order.size(); ++i) {
    result.blocks[1 + i] = original.blocks[1 + order[i]];
  }
  return result;
}

ba::block_layout prompt::layout() const {
  std::vector<ba::index_t> lengths;
  for (const auto& block : blocks) lengths.push_back(static_cast<ba::index_t>(block.size()));
  return ba::with_final_block(ba::block_layout::from_lengths(lengths));
}

std::vector<token> prompt::tokens() const {
  std::vector<token> all;
  for (const auto& block : blocks) all.insert(all.end(), block.begin(), block.end());
  return all;
}

}  // namespace rag
