// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/window_mask.hpp>

#include <limits>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

TEST_CASE("windows of every small size") {
  for (index_t n = 0; n <= 7; ++n) {
    for (index_t window = 1; window <= 9; ++window) {
      CAPTURE(n, window);
      check_mask(sliding_window_mask(n, window), n, n,
                 [&](index_t i, index_t j) { return j <= i && i - window < j; });
      for (index_t sinks = 0; sinks <= 8; ++sinks) {
        CAPTURE(sinks);
        check_mask(sink_window_mask(n, sinks, window), n, n,
                   [&](index_t i, index_t j) { return j <= i && (j < sinks || i - window < j); });
      }
    }
  }
}

TEST_CASE("a window is one slice, with sinks two") {
  CHECK(sliding_window_mask(100, 8).slices().size() == 1);
  CHECK(sink_window_mask(100, 4, 8).slices().size() == 2);
  CHECK(sink_window_mask(12, 4, 8).slices().size() == 2);
  CHECK(sink_window_mask(8, 4, 8).slices().size() == 1);
}

TEST_CASE("a window longer than any axis is causal") {
  constexpr index_t huge = std::numeric_limits<index_t>::max();
  CHECK(visible_pairs(sliding_window_mask(9, huge)) == 45);
  CHECK(visible_pairs(sink_window_mask(9, huge, huge)) == 45);
  CHECK(visible_pairs(sink_window_mask(9, huge, 1)) == 45);
}

TEST_CASE("windows refuse sizes that mean nothing") {
  CHECK_THROWS_WITH(sliding_window_mask(-1, 2), contains("tokens is -1"));
  CHECK_THROWS_WITH(sliding_window_mask(4, 0), contains("sliding_window_mask: window is 0"));
  CHECK_THROWS_WITH(sink_window_mask(-1, 1, 2), contains("tokens is -1"));
  CHECK_THROWS_WITH(sink_window_mask(4, 1, 0), contains("window is 0"));
  CHECK_THROWS_WITH(sink_window_mask(4, -1, 2), contains("sinks is -1"));
}
