// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/packed_documents_mask.hpp>

#include "layout/layout_cases.hpp"
#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

TEST_CASE("documents see only themselves, causally or both ways") {
  const std::vector<index_t> lengths = {2, 0, 1};
  CHECK(picture(packed_documents_mask(lengths, document_attention::causal)) == "x..\nxx.\n..x\n");
  CHECK(picture(packed_documents_mask(lengths, document_attention::bidirectional)) ==
        "xx.\nxx.\n..x\n");
}

TEST_CASE("every small list of documents") {
  for_each_lengths(4, 3, [](const std::vector<index_t>& lengths) {
    CAPTURE(lengths);
    const block_layout documents = layout_of(lengths);
    const index_t n = documents.tokens();
    check_mask(packed_documents_mask(lengths, document_attention::causal), n, n,
               [&](index_t i, index_t j) {
                 return j <= i && documents.block_of(i) == documents.block_of(j);
               });
    check_mask(
        packed_documents_mask(lengths, document_attention::bidirectional), n, n,
        [&](index_t i, index_t j) { return documents.block_of(i) == documents.block_of(j); });
  });
}

TEST_CASE("in a layout each sequence is a document, whatever its blocks") {
  const auto layout = packed_layout({{1, 0, 2}, {}, {4}});
  for (const document_attention attention :
       {document_attention::causal, document_attention::bidirectional}) {
    CHECK(packed_documents_mask(layout, attention).slices() ==
          packed_documents_mask(std::vector<index_t>{3, 4}, attention).slices());
  }
  CHECK(packed_documents_mask(layout_of({2, 3, 1}), document_attention::causal).slices() ==
        causal_mask(6).slices());
}

TEST_CASE("a negative document length is refused") {
  CHECK_THROWS_WITH(packed_documents_mask(std::vector<index_t>{1, -1}, document_attention::causal),
                    contains("lengths[1] is -1"));
  CHECK_THROWS_WITH(packed_documents_mask({1, 2}, static_cast<document_attention>(2)),
                    contains("packed_documents_mask: attention is 2"));
}
