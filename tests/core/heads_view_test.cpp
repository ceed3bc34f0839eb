// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <array>
#include <blockattn/core/heads_view.hpp>
#include <numeric>
#include <type_traits>

#include "support/catch.hpp"

using namespace blockattn;

namespace {

constexpr index_t tokens = 3;
constexpr index_t heads = 2;
constexpr index_t head_dim = 4;

static_assert(std::is_convertible_v<heads_view<float>, heads_view<const float>>);
static_assert(!std::is_convertible_v<heads_view<const float>, heads_view<float>>);
static_assert(!std::is_convertible_v<heads_view<float>, heads_view<const double>>);
static_assert(std::is_convertible_v<lse_view<float>, lse_view<const float>>);
static_assert(!std::is_convertible_v<lse_view<const float>, lse_view<float>>);
static_assert(!std::is_convertible_v<lse_view<float>, bool>);
static_assert(std::is_same_v<decltype(heads_view<float>::token_stride), index_t>);
static_assert(std::is_same_v<decltype(heads_view<float>::head_stride), index_t>);

/// data[i] == i, so that a value tells where it was read.
std::array<int, 48> numbered() {
  std::array<int, 48> data{};
  std::iota(data.begin(), data.end(), 0);
  return data;
}

}  // namespace

TEST_CASE("token_major and head_major address the same tensor in their own order") {
  auto data = numbered();
  const auto by_token = token_major(data.data(), tokens, heads, head_dim);
  const auto by_head = head_major(data.data(), tokens, heads, head_dim);
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      for (index_t d = 0; d < head_dim; ++d) {
        CHECK(by_token.row(t, h)[d] == (t * heads + h) * head_dim + d);
        CHECK(by_head.row(t, h)[d] == (h * tokens + t) * head_dim + d);
      }
    }
  }
  CHECK(by_token.tokens == tokens);
  CHECK(by_head.heads == heads);
  CHECK(by_head.head_dim == head_dim);
}

TEST_CASE("strides place a view inside a larger buffer") {
  auto data = numbered();
  // The second of three interleaved parts (as in a fused QKV row): rows of 2 x 3 x 4 values.
  const heads_view<int> part{data.data() + 4, 2, heads, head_dim, 24, 12};
  CHECK(part.row(0, 0)[0] == 4);
  CHECK(part.row(0, 1)[0] == 16);
  CHECK(part.row(1, 1)[3] == 24 + 12 + 4 + 3);
}

TEST_CASE("token_slice shifts the token axis and keeps the rest") {
  auto data = numbered();
  for (const auto& whole : {token_major(data.data(), tokens, heads, head_dim),
                            head_major(data.data(), tokens, heads, head_dim)}) {
    for (index_t begin = 0; begin <= tokens; ++begin) {
      const auto part = token_slice(whole, begin, tokens - begin);
      CHECK(part.tokens == tokens - begin);
      CHECK(part.heads == heads);
      CHECK(part.head_dim == head_dim);
      for (index_t t = 0; t < part.tokens; ++t)
        for (index_t h = 0; h < heads; ++h) CHECK(part.row(t, h) == whole.row(begin + t, h));
    }
  }
}

TEST_CASE("a view of const addresses the same rows") {
  auto data = numbered();
  const auto view = head_major(data.data(), tokens, heads, head_dim);
  const heads_view<const int> constant = view;
  CHECK(constant.tokens == view.tokens);
  CHECK(constant.row(2, 1) == view.row(2, 1));
}

TEST_CASE("lse_view addresses both orders and knows when it is absent") {
  auto data = numbered();
  const auto by_token = token_major_lse(data.data(), tokens, heads);
  const auto by_head = head_major_lse(data.data(), tokens, heads);
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      CHECK(by_token.at(t, h) == t * heads + h);
      CHECK(by_head.at(t, h) == h * tokens + t);
      const lse_view<const int> constant = by_head;
      CHECK(&constant.at(t, h) == &by_head.at(t, h));
    }
  }
  CHECK(static_cast<bool>(by_token));
  CHECK_FALSE(static_cast<bool>(lse_view<float>{}));
}
