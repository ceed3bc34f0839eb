// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/range.hpp>

#include "support/catch.hpp"

using namespace blockattn;

TEST_CASE("index_range agrees with counting its members, and intersect with both") {
  constexpr index_t limit = 5;
  for (index_t a = 0; a <= limit; ++a) {
    for (index_t b = 0; b <= limit; ++b) {
      const index_range range{a, b};
      CAPTURE(a, b);
      index_t members = 0;
      for (index_t i = -1; i <= limit; ++i) members += range.contains(i) ? 1 : 0;
      CHECK(range.size() == members);
      CHECK(range.empty() == (members == 0));
      for (index_t c = 0; c <= limit; ++c) {
        for (index_t d = 0; d <= limit; ++d) {
          const index_range other{c, d};
          const index_range common = intersect(range, other);
          for (index_t i = -1; i <= limit; ++i) {
            if (common.contains(i) != (range.contains(i) && other.contains(i))) {
              CAPTURE(c, d, i);
              FAIL("intersect is wrong");
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a default range is empty and ranges compare by their ends") {
  CHECK(index_range{}.empty());
  CHECK(index_range{1, 3} == index_range{1, 3});
  CHECK_FALSE(index_range{1, 3} == index_range{1, 4});
  CHECK_FALSE(index_range{1, 3} == index_range{0, 3});
}
