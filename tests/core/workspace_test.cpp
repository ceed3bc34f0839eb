// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/workspace.hpp>

#include <algorithm>
#include <cstdint>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

std::uintptr_t misalignment(const void* at) {
  return reinterpret_cast<std::uintptr_t>(at) % static_cast<std::uintptr_t>(workspace_alignment);
}

}  // namespace

TEST_CASE("workspace_layout gives aligned pieces that do not overlap", "[workspace]") {
  blockattn::detail::workspace_layout layout;
  CHECK(layout.size() == 0);
  CHECK(layout.take<float>(0) == 0);
  CHECK(layout.size() == 0);
  CHECK(layout.take<std::byte>(1) == 0);
  CHECK(layout.size() == 64);
  CHECK(layout.take<double>(8) == 64);
  CHECK(layout.size() == 128);
  CHECK(layout.take<double>(9) == 128);
  CHECK(layout.size() == 256);
  CHECK(layout.take<float>(16) == 256);
  CHECK(layout.size() == 320);
}

TEST_CASE("the same takes measure a workspace and index it", "[workspace]") {
  const std::uint64_t seed = test_seed(101);
  CAPTURE(seed);
  random_source random(seed);
  blockattn::detail::workspace_layout layout;
  std::vector<std::pair<index_t, index_t>> pieces;  // offset, count of int
  for (int i = 0; i < 40; ++i) {
    const index_t count = random.integer(0, 50);
    pieces.emplace_back(layout.take<int>(count), count);
  }
  const workspace_buffer buffer(layout.size());
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    int* at = blockattn::detail::piece<int>(buffer.bytes(), pieces[i].first);
    CHECK(misalignment(at) == 0);
    std::fill_n(at, pieces[i].second, static_cast<int>(i));
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const int* at = blockattn::detail::piece<int>(buffer.bytes(), pieces[i].first);
    CHECK(std::count(at, at + pieces[i].second, static_cast<int>(i)) == pieces[i].second);
  }
}

TEST_CASE("workspace_buffer owns aligned bytes of the size asked for", "[workspace]") {
  for (const index_t size : {0, 1, 63, 64, 65, 100000}) {
    CAPTURE(size);
    const workspace_buffer buffer(size);
    CHECK(static_cast<index_t>(buffer.bytes().size()) == size);
    CHECK(misalignment(buffer.bytes().data()) == 0);
    std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{1});
  }
}

TEST_CASE("a workspace beyond any memory is refused, not wrapped around", "[workspace]") {
  using blockattn::detail::saturating_multiply;
  using blockattn::detail::too_large;
  static_assert(saturating_multiply(index_t{1} << 31, index_t{1} << 31) == index_t{1} << 62);
  static_assert(saturating_multiply(index_t{1} << 32, index_t{1} << 31) == too_large);
  static_assert(saturating_multiply(0, too_large, 3) == 0);
  static_assert(saturating_multiply(index_t{1} << 31, index_t{1} << 31, 8) == too_large);
  static_assert(blockattn::detail::saturating_add(too_large - 1, 1) == too_large);
  static_assert(blockattn::detail::saturating_add(too_large, 5) == too_large);
  blockattn::detail::workspace_layout layout;
  layout.take<float>(index_t{1} << 62);
  layout.take<float>(index_t{1} << 62);
  CHECK(layout.size() > index_t{1} << 62);
  CHECK_THROWS_WITH(workspace_buffer(layout.size()), contains("more than any machine has"));
  const workspace_buffer buffer(64);
  CHECK_THROWS_AS(blockattn::detail::check_workspace("f", buffer.bytes(), layout.size()), error);
}

TEST_CASE("check_workspace refuses what is small or misaligned", "[workspace]") {
  using blockattn::detail::check_workspace;
  const workspace_buffer buffer(256);
  const std::span<std::byte> bytes = buffer.bytes();
  CHECK_NOTHROW(check_workspace("f", bytes, 256));
  CHECK_NOTHROW(check_workspace("f", bytes, 100));
  CHECK_NOTHROW(check_workspace("f", {}, 0));
  CHECK_NOTHROW(check_workspace("f", bytes.subspan(1), 0));
  CHECK_NOTHROW(check_workspace("f", bytes.subspan(64), 192));
  CHECK_THROWS_WITH(check_workspace("f", bytes.first(255), 256),
                    "f: workspace has 255 bytes, needs 256");
  CHECK_THROWS_WITH(check_workspace("f", {}, 1), "f: workspace has 0 bytes, needs 1");
  CHECK_THROWS_WITH(check_workspace("f", bytes.subspan(8), 200),
                    "f: workspace is 8 bytes past a multiple of 64");
  CHECK_THROWS_AS(check_workspace("f", bytes, 257), error);
}
