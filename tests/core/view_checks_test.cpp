// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/view_checks.hpp>
#include <set>

#include "support/catch.hpp"

using namespace blockattn;

TEST_CASE("rows_are_disjoint is exact for every small lattice of rows") {
  const auto overlaps = [](index_t tokens, index_t heads, index_t width, index_t token_stride,
                           index_t head_stride) {
    std::set<index_t> used;
    for (index_t token = 0; token < tokens; ++token) {
      for (index_t head = 0; head < heads; ++head) {
        for (index_t t = 0; t < width; ++t) {
          if (!used.insert(token * token_stride + head * head_stride + t).second) return true;
        }
      }
    }
    return false;
  };
  for (index_t tokens = 0; tokens <= 4; ++tokens) {
    for (index_t heads = 0; heads <= 4; ++heads) {
      for (const index_t width : {0, 1, 3}) {
        for (index_t token_stride = -14; token_stride <= 14; ++token_stride) {
          for (index_t head_stride = -14; head_stride <= 14; ++head_stride) {
            const bool disjoint =
                detail::rows_are_disjoint(tokens, heads, width, token_stride, head_stride);
            if (disjoint == !overlaps(tokens, heads, width, token_stride, head_stride)) continue;
            FAIL_CHECK("rows_are_disjoint(" << tokens << ", " << heads << ", " << width << ", "
                                            << token_stride << ", " << head_stride << ") is "
                                            << disjoint);
          }
        }
      }
    }
  }
}

TEST_CASE("view checks name the view and its numbers") {
  float data[8] = {};
  CHECK_NOTHROW(detail::check_view("f", "q", token_major(data, 2, 2, 2)));
  CHECK_NOTHROW(detail::check_view("f", "q", token_major<float>(nullptr, 0, 2, 2)));
  CHECK_THROWS_WITH(detail::check_view("f", "q", token_major(data, 2, -2, 2)),
                    "f: q has negative size (2, -2, 2)");
  CHECK_THROWS_WITH(detail::check_view("f", "q", token_major<float>(nullptr, 2, 2, 2)),
                    "f: q.data is null but its size is (2, 2, 2)");
  CHECK_THROWS_WITH(detail::check_output_view("f", "o", heads_view<float>{data, 2, 2, 2, 1, 4}),
                    "f: rows of o overlap: head_dim 2, token_stride 1, head_stride 4");
}
