// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/shared_prefix_mask.hpp>

#include "layout/layout_cases.hpp"
#include "mask/mask_checks.hpp"
#include "support/catch.hpp"

using namespace blockattn_test;

namespace {

void check_shared_prefix(const block_layout& layout) {
  check_mask(shared_prefix_mask(layout), layout.tokens(), layout.tokens(),
             [&](index_t i, index_t j) {
               const index_t row = layout.block_of(i);
               const index_t column = layout.block_of(j);
               if (j > i || layout.sequence_of(i) != layout.sequence_of(j)) return false;
               const index_t first = layout.sequence_blocks(layout.sequence_of(j)).begin;
               const index_t prefix = first + (layout.is_shared_sink_block(first) ? 1 : 0);
               return row == column || layout.is_final(row) || column <= prefix;
             });
}

}  // namespace

TEST_CASE("every block sees the prefix") {
  CHECK(picture(shared_prefix_mask(layout_of({1, 1, 2, 1}))) ==
        "x....\n"
        "xx...\n"
        "x.x..\n"
        "x.xx.\n"
        "xxxxx\n");
}

TEST_CASE("shared prefixes over every small layout and ragged packed ones") {
  for_each_lengths(4, 2, [](const std::vector<index_t>& lengths) {
    CAPTURE(lengths);
    check_shared_prefix(layout_of(lengths));
    check_shared_prefix(with_sink_tokens(layout_of(lengths), {.sharing = sink_sharing::shared}));
  });
  const auto seed = test_seed(204);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 20; ++round) {
    const auto sequences = random_lengths(random, 5);
    CAPTURE(round, sequences);
    check_shared_prefix(packed_layout(sequences));
    check_shared_prefix(with_sink_tokens(packed_layout(sequences), {.tokens_per_block = 2}));
    check_shared_prefix(with_sink_tokens(packed_layout(sequences),
                                         {.tokens_per_block = 2, .sharing = sink_sharing::shared}));
  }
}

TEST_CASE("an empty prefix is block attention") {
  CHECK(shared_prefix_mask(layout_of({0, 2, 3, 1})).slices() ==
        block_attention_mask(layout_of({2, 3, 1})).slices());
}
