// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <vector>

namespace rag {

/// Cuts UTF-8 text into the words that byte-pair merges never cross. First every numeric character
/// (\p{N}) stands alone; what is left between them is cut by GPT-2's expression
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// This is the pre-tokenizer that GGUF calls "smollm". The words are consecutive parts of `text`
/// and cover it; bytes that are not UTF-8 count as symbols. O(size).
std::vector<std::string_view> split_words(std::string_view text);

}  // namespace rag
