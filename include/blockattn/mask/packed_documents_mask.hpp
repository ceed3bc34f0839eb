// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/attention_mask.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// How the tokens of one document see one another.
enum class document_attention { causal, bidirectional };

namespace detail {

inline slice document_slice(const index_range& tokens, document_attention attention) noexcept {
  return {.queries = tokens,
          .keys = tokens,
          .upper = attention == document_attention::causal ? 0 : no_upper_diagonal};
}

}  // namespace detail

/// Documents packed on one axis, blind to one another; each sequence of the layout is a document,
/// whatever its blocks. One slice per sequence. O(sequences log sequences).
inline attention_mask packed_documents_mask(const block_layout& layout,
                                            document_attention attention) {
  detail::check_enumerator("packed_documents_mask", "attention", attention,
                           document_attention::bidirectional);
  std::vector<slice> slices;
  for (index_t s = 0; s < layout.sequences(); ++s) {
    slices.push_back(detail::document_slice(layout.sequence_tokens(s), attention));
  }
  return attention_mask::from_disjoint_slices(layout.tokens(), layout.tokens(), std::move(slices));
}

/// The same from the lengths of the documents. Errors: those of block_layout::from_lengths.
inline attention_mask packed_documents_mask(const index_list& lengths,
                                            document_attention attention) {
  detail::check_enumerator("packed_documents_mask", "attention", attention,
                           document_attention::bidirectional);
  const block_layout documents = block_layout::from_lengths(lengths);
  std::vector<slice> slices;
  for (index_t d = 0; d < documents.blocks(); ++d) {
    slices.push_back(detail::document_slice(documents.block(d), attention));
  }
  return attention_mask::from_disjoint_slices(documents.tokens(), documents.tokens(),
                                              std::move(slices));
}

}  // namespace blockattn::inline BLOCKATTN_ABI
