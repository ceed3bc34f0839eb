// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_visibility_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/packed_documents_mask.hpp>
#include <blockattn/mask/shared_prefix_mask.hpp>

#include "layout/layout_cases.hpp"
#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

namespace {

using matrix = std::vector<block_visibility>;

/// A matrix from text, a row per query block: `.` hidden, `F` full, `C` causal.
matrix matrix_of(const std::string& rows) {
  matrix entries;
  for (const char entry : rows) {
    if (entry == '.') entries.push_back(block_visibility::hidden);
    if (entry == 'F') entries.push_back(block_visibility::full);
    if (entry == 'C') entries.push_back(block_visibility::causal);
  }
  return entries;
}

/// A matrix from a rule of (query block, key block).
template <class Rule>
matrix matrix_from(index_t blocks, const Rule& rule) {
  matrix entries;
  for (index_t b = 0; b < blocks; ++b) {
    for (index_t c = 0; c < blocks; ++c) entries.push_back(rule(b, c));
  }
  return entries;
}

void check_visibility(const block_layout& layout, const matrix& entries) {
  check_mask(block_visibility_mask(layout, entries), layout.tokens(), layout.tokens(),
             [&](index_t i, index_t j) {
               const index_t entry = layout.block_of(i) * layout.blocks() + layout.block_of(j);
               switch (entries[static_cast<std::size_t>(entry)]) {
                 case block_visibility::full:
                   return true;
                 case block_visibility::causal:
                   return j <= i;
                 case block_visibility::hidden:
                   break;
               }
               return false;
             });
}

}  // namespace

TEST_CASE("golden: KVLink documents, links and question") {
  // Blocks S, d d, L, d d, L, q.
  const auto mask = block_visibility_mask(layout_of({1, 2, 1, 2, 1, 1}), matrix_of("C....."
                                                                                   ".C...."
                                                                                   "FFC..."
                                                                                   "...C.."
                                                                                   "FFFFC."
                                                                                   "FFFFFC"));
  CHECK(picture(mask) ==
        "x.......\n"
        ".x......\n"
        ".xx.....\n"
        "xxxx....\n"
        "....x...\n"
        "....xx..\n"
        "xxxxxxx.\n"
        "xxxxxxxx\n");
}

TEST_CASE("golden: BD3-LM's noised and clean halves, n = 4, B = 2") {
  const auto mask = block_visibility_mask(layout_of({2, 2, 2, 2}), matrix_of("F..."
                                                                             ".FF."
                                                                             "..F."
                                                                             "..FF"));
  CHECK(picture(mask) ==
        "xx......\n"
        "xx......\n"
        "..xxxx..\n"
        "..xxxx..\n"
        "....xx..\n"
        "....xx..\n"
        "....xxxx\n"
        "....xxxx\n");
}

TEST_CASE("golden: superposition's fork and join") {
  // Preamble p, documents d1 d2, their queries q1 q2, response r: v sees u when a path leads there.
  const auto mask = block_visibility_mask(layout_of({1, 2, 1, 1, 1, 1}), matrix_of("C....."
                                                                                   "FC...."
                                                                                   "F.C..."
                                                                                   "FF.C.."
                                                                                   "F.F.C."
                                                                                   "FFFFFC"));
  CHECK(picture(mask) ==
        "x......\n"
        "xx.....\n"
        "xxx....\n"
        "x..x...\n"
        "xxx.x..\n"
        "x..x.x.\n"
        "xxxxxxx\n");
}

TEST_CASE("golden: block-causal, every earlier block and the whole of one's own") {
  const auto full_before = [](index_t b, index_t c) {
    return c <= b ? block_visibility::full : block_visibility::hidden;
  };
  const auto mask = block_visibility_mask(layout_of({2, 1, 2}), matrix_from(3, full_before));
  CHECK(picture(mask) == "xx...\nxx...\nxxx..\nxxxxx\nxxxxx\n");
  CHECK(mask.slices().size() == 3);
}

TEST_CASE("every 2 x 2 and 3 x 3 matrix over small blocks") {
  for (const index_t blocks : {2, 3}) {
    const auto count = static_cast<std::size_t>(blocks * blocks);
    const auto layout = blocks == 2 ? layout_of({2, 3}) : layout_of({2, 1, 2});
    matrix entries(count, block_visibility::hidden);
    for (bool more = true; more;) {
      check_visibility(layout, entries);
      more = false;
      for (block_visibility& entry : entries) {
        if (entry != block_visibility::causal) {
          entry =
              entry == block_visibility::hidden ? block_visibility::full : block_visibility::causal;
          more = true;
          break;
        }
        entry = block_visibility::hidden;
      }
    }
  }
}

TEST_CASE("random matrices over ragged packed layouts with empty blocks") {
  const auto seed = test_seed(205);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 60; ++round) {
    const auto layout = packed_layout(random_lengths(random, 4));
    const double hidden = random.real(0, 1);
    CAPTURE(round, layout.blocks(), hidden);
    check_visibility(layout, matrix_from(layout.blocks(), [&](index_t, index_t) {
                       if (random.chance(hidden)) return block_visibility::hidden;
                       return random.chance(0.5) ? block_visibility::full
                                                 : block_visibility::causal;
                     }));
  }
}

TEST_CASE("neighbours merge into the slices that one would write by hand") {
  const auto layout = layout_of({3, 0, 2, 4, 1});
  const index_t blocks = layout.blocks();
  const index_t n = layout.tokens();
  const auto mask_of = [&](const auto& rule) {
    return block_visibility_mask(layout, matrix_from(blocks, rule)).slices();
  };
  const auto all_causal = [](index_t, index_t) { return block_visibility::causal; };
  CHECK(mask_of(all_causal) == causal_mask(n).slices());
  const auto all_full = [](index_t, index_t) { return block_visibility::full; };
  CHECK(mask_of(all_full) == full_mask(n, n).slices());
  const auto final_sees_all = [&](index_t b, index_t c) {
    if (b == c) return block_visibility::causal;
    return b == blocks - 1 ? block_visibility::full : block_visibility::hidden;
  };
  CHECK(mask_of(final_sees_all) == block_attention_mask(layout).slices());
  const auto diagonal = [](index_t b, index_t c) {
    return b == c ? block_visibility::full : block_visibility::hidden;
  };
  CHECK(mask_of(diagonal) ==
        packed_documents_mask(std::vector<index_t>{3, 2, 4, 1}, document_attention::bidirectional)
            .slices());
  const auto prefix = [&](index_t b, index_t c) {
    if (b == c) return block_visibility::causal;
    return c < b && (c == 0 || b == blocks - 1) ? block_visibility::full : block_visibility::hidden;
  };
  CHECK(visible_pairs(block_visibility_mask(layout, matrix_from(blocks, prefix))) ==
        visible_pairs(shared_prefix_mask(layout)));
}

TEST_CASE("a shared sink set is a block of its own") {
  const auto layout =
      with_sink_tokens(layout_of({1, 1}), {.tokens_per_block = 2, .sharing = sink_sharing::shared});
  const auto mask = block_visibility_mask(layout, matrix_of("F.."
                                                            "FC."
                                                            ".FC"));
  CHECK(picture(mask) == "xx..\nxx..\nxxx.\n..xx\n");
}

TEST_CASE("matrices of another size or with other values are refused") {
  const auto layout = layout_of({1, 2});
  CHECK_THROWS_WITH(block_visibility_mask(layout, matrix(3)),
                    contains("holds 3 entries") && contains("2 x 2"));
  CHECK_THROWS_WITH(block_visibility_mask(layout, matrix(6)), contains("holds 6 entries"));
  CHECK_THROWS_WITH(block_visibility_mask(block_layout(), matrix(1)), contains("0 x 0"));
  matrix bad = matrix_of("C.FC");
  bad[2] = static_cast<block_visibility>(7);
  CHECK_THROWS_WITH(block_visibility_mask(layout, bad), contains("visibility[1][0] is 7"));
  CHECK(block_visibility_mask(block_layout(), {}).slices().empty());
}
