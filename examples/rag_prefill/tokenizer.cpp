// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "tokenizer.hpp"

#include "input_error.hpp"
#include "split_words.hpp"
#include "utf8.hpp"

namespace rag {
namespace {

/// GPT-2 writes each byte as one printable character: the printable Latin-1 bytes as themselves,
/// the others, in order, as U+0100, U+0101, ... This is the table character -> byte; -1 = none.
std::array<int, 324> byte_of_character_table() {
  std::array<int, 324> table;
  table.fill(-1);
  std::size_t next = 256;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const bool printable = (33 <= byte && byte <= 126) || (161 <= byte && byte != 173);
    table[printable ? byte : next++] = static_cast<int>(byte);
  }
  return table;
}

/// A vocabulary entry in GPT-2's alphabet to the bytes that it stands for.
std::string bytes_of_entry(const std::string& entry) {
  static const std::array<int, 324> byte_of_character = byte_of_character_table();
  std::string bytes;
  for (std::size_t i = 0; i < entry.size();) {
    const UChar32 code = next_code_point(entry, i);
    const bool known = 0 <= code && code < static_cast<UChar32>(byte_of_character.size());
    const int byte = known ? byte_of_character[static_cast<std::size_t>(code)] : -1;
    require(byte >= 0, "the model's vocabulary entry \"", entry, "\" is not byte-level BPE");
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace

tokenizer::tokenizer(const gguf_file& file) {
  const std::string& model = file.text("tokenizer.ggml.model");
  const std::string& pre = file.text("tokenizer.ggml.pre");
  require(model == "gpt2" && pre == "smollm", file.path(), ": tokenizer ", model, " / ", pre,
          " is not supported, only gpt2 / smollm");

  const auto& entries = file.texts("tokenizer.ggml.tokens");
  const auto& types = file.integers("tokenizer.ggml.token_type");
  require(types.size() == entries.size(), file.path(), ": the model has ", entries.size(),
          " tokens but ", types.size(), " token types");
  constexpr std::int64_t special_type = 3;
  std::unordered_map<std::string, token> by_entry;
  token_of_byte_.fill(-1);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto id = static_cast<token>(i);
    if (types[i] == special_type) {
      specials_.emplace(entries[i], id);
      bytes_of_.push_back(entries[i]);
      continue;
    }
    by_entry.emplace(entries[i], id);
    bytes_of_.push_back(bytes_of_entry(entries[i]));
    if (bytes_of_.back().size() == 1) {
      token_of_byte_[static_cast<unsigned char>(bytes_of_.back()[0])] = id;
    }
  }

  const auto find = [&](const std::string& entry) {
    const auto found = by_entry.find(entry);
    require(found != by_entry.end(), file.path(), ": the model merges into \"", entry,
            "\", which is no token");
    return found->second;
  };
  const auto& merges = file.texts("tokenizer.ggml.merges");
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::size_t space = merges[rank].find(' ');
    require(space != std::string::npos, file.path(), ": the model's merge \"", merges[rank],
            "\" is no pair");
    const std::string left = merges[rank].substr(0, space);
    const std::string right = merges[rank].substr(space + 1);
    merges_.emplace(pair_key(find(left), find(right)),
                    merge{static_cast<std::int32_t>(rank), find(left + right)});
  }

  const std::int64_t end = file.integer("tokenizer.ggml.eos_token_id");
  require(0 <= end && end < vocabulary_size(), file.path(), ": eos_token_id is ", end,
          " but the model has ", vocabulary_size(), " tokens");
  end_of_turn_ = static_cast<token>(end);
}

std::vector<token> tokenizer::encode(std::string_view text) const {
  std::vector<token> tokens;
  for (const std::string_view word : split_words(text)) append_word(word, tokens);
  return tokens;
}

/// Merges the neighbours of lowest rank, the leftmost first, until none is left. O(size^2), and
/// words are short.
void tokenizer::append_word(std::string_view word, std::vector<token>& tokens) const {
  std::vector<token> parts;
  for (const char byte : word) {
    const token id = token_of_byte_[static_cast<unsigned char>(byte)];
    if (id >= 0) parts.push_back(id);
  }
  for (;;) {
    const merge* best = nullptr;
    std::size_t place = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = merges_.find(pair_key(parts[i], parts[i + 1]));
      if (found == merges_.end() || (best && best->rank <= found->second.rank)) continue;
      best = &found->second;
      place = i;
    }
    if (!best) break;
    parts[place] = best->result;
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
  tokens.insert(tokens.end(), parts.begin(), parts.end());
}

std::string tokenizer::decode(std::span<const token> tokens) const {
  std::string text;
  for (const token id : tokens) text += bytes_of_.at(static_cast<std::size_t>(id));
  return text;
}

token tokenizer::special(const std::string& name) const {
  const auto found = specials_.find(name);
  require(found != specials_.end(), "the model has no special token ", name);
  return found->second;
}

}  // namespace rag
