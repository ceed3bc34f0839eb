// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/view_checks.hpp>
#include <limits>
#include <set>

#include "support/catch.hpp"
#include "support/contains.hpp"

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

TEST_CASE("views whose numbers lead nowhere are refused") {
  using blockattn_test::contains;
  float value = 0;
  const auto check = [](const heads_view<const float>& view) {
    detail::check_view("f", "x", view);
  };
  constexpr index_t many = index_t{1} << 32;
  CHECK_THROWS_WITH(check({nullptr, many, many, 8, 1, 1}), contains("f: x.data is null"));
  CHECK_THROWS_WITH(check({&value, many, many, 8, many, 8}),
                    contains("spans more than 2^62 bytes"));
  CHECK_THROWS_WITH(check({&value, 2, 1, 8, std::numeric_limits<index_t>::min(), 8}),
                    contains("spans more than 2^62 bytes"));
  CHECK_NOTHROW(check({&value, 1, 1, 8, std::numeric_limits<index_t>::min(), 8}));
  CHECK_NOTHROW(check({nullptr, 0, 4, 8, 0, 0}));
  CHECK_NOTHROW(check({nullptr, 4, 4, 0, 0, 0}));
}

TEST_CASE("a stride of 0 is refused unless broadcasting is asked for") {
  using blockattn_test::contains;
  float row[8] = {};
  const auto check = [](const heads_view<const float>& view) {
    detail::check_view("f", "x", view);
  };
  heads_view<const float> view = {.data = row, .tokens = 5, .heads = 1, .head_dim = 8};
  CHECK_THROWS_WITH(check(view),
                    contains("f: x has strides 0 (tokens) and 0 (heads) for 5 tokens"));
  view.broadcast = true;
  CHECK_NOTHROW(check(view));
  CHECK_NOTHROW(check(token_slice(view, 1, 3)));
  view = {.data = row, .tokens = 1, .heads = 1, .head_dim = 8};
  CHECK_NOTHROW(check(view));
}
