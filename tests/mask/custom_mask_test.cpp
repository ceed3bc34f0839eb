// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/custom_mask.hpp>
#include <blockattn/mask/packed_documents_mask.hpp>
#include <blockattn/mask/window_mask.hpp>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

TEST_CASE("a predicate becomes the slices that one would write by hand") {
  const auto causal = [](index_t i, index_t j) { return j <= i; };
  CHECK(picture(custom_mask(9, 9, causal)) == picture(causal_mask(9)));
  CHECK(custom_mask(9, 9, causal).slices() == causal_mask(9).slices());
  const auto window = [](index_t i, index_t j) { return j <= i && i - 3 < j; };
  CHECK(custom_mask(9, 9, window).slices() == sliding_window_mask(9, 3).slices());
  CHECK(custom_mask(3, 5, [](index_t, index_t) { return true; }).slices() ==
        full_mask(3, 5).slices());
  const std::vector<index_t> lengths = {2, 3, 1};
  const auto documents = [](index_t i, index_t j) {
    return (i < 2) == (j < 2) && (i < 5) == (j < 5);
  };
  CHECK(custom_mask(6, 6, documents).slices() ==
        packed_documents_mask(lengths, document_attention::bidirectional).slices());
}

TEST_CASE("the predicate is called once per pair, row by row") {
  std::vector<std::pair<index_t, index_t>> calls;
  custom_mask(2, 2, [&](index_t i, index_t j) {
    calls.emplace_back(i, j);
    return false;
  });
  CHECK(calls == std::vector<std::pair<index_t, index_t>>{{0, 0}, {0, 1}, {1, 0}, {1, 1}});
}

TEST_CASE("every predicate over 3 x 4 pairs") {
  for (unsigned bits = 0; bits < 1U << 12; ++bits) {
    CAPTURE(bits);
    const auto visible = [&](index_t i, index_t j) { return ((bits >> (i * 4 + j)) & 1U) != 0; };
    check_mask(custom_mask(3, 4, visible), 3, 4, visible);
  }
}

TEST_CASE("random predicates, scattered and in slices") {
  const auto seed = test_seed(207);
  CAPTURE(seed);
  random_source random(seed);
  for (int round = 0; round < 150; ++round) {
    CAPTURE(round);
    const index_t queries = random.integer(0, 12);
    const index_t keys = random.integer(0, 12);
    const attention_mask source = random_mask(random, queries, keys);
    const auto visible = [&](index_t i, index_t j) { return source.visible(i, j); };
    check_mask(custom_mask(queries, keys, visible), queries, keys, visible);
  }
  const auto checkerboard = [](index_t i, index_t j) { return (i + j) % 2 == 0; };
  check_mask(custom_mask(7, 9, checkerboard), 7, 9, checkerboard);
}

TEST_CASE("custom_mask refuses impossible token counts") {
  const auto none = [](index_t, index_t) { return false; };
  CHECK_THROWS_WITH(custom_mask(-1, 2, none), contains("custom_mask: query_tokens is -1"));
  CHECK_THROWS_WITH(custom_mask(1, -2, none), contains("key_tokens is -2"));
}
