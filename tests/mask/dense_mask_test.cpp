// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/dense_mask.hpp>

#include "support/catch.hpp"

using namespace blockattn;

TEST_CASE("a mask becomes bytes and text, query by query") {
  const auto mask = attention_mask::from_disjoint_slices(
      2, 3, {{.queries = {0, 2}, .keys = {0, 2}, .upper = 0}, {.queries = {1, 2}, .keys = {2, 3}}});
  CHECK(to_dense(mask) == std::vector<std::uint8_t>{1, 0, 0, 1, 1, 1});
  CHECK(picture(mask) == "x..\nxxx\n");
}

TEST_CASE("masks without rows, without columns and without pairs") {
  CHECK(to_dense(attention_mask()).empty());
  CHECK(picture(attention_mask()).empty());
  CHECK(picture(attention_mask::from_disjoint_slices(2, 0, {})) == "\n\n");
  CHECK(picture(attention_mask::from_disjoint_slices(0, 2, {})).empty());
  CHECK(picture(attention_mask::from_disjoint_slices(2, 1, {})) == ".\n.\n");
}
