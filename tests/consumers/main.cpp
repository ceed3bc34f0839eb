// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// What every consumer builds: it includes everything, runs a forward pass and sees the version that
// its build system was told.

#include <array>
#include <blockattn/blockattn.hpp>
#include <cstdio>
#include <string_view>
#include <vector>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace ba = blockattn;

int main() {
  constexpr const char* header_version = TEXT(BLOCKATTN_VERSION_MAJOR) "." TEXT(
      BLOCKATTN_VERSION_MINOR) "." TEXT(BLOCKATTN_VERSION_PATCH);
  if (std::string_view(header_version) != TEXT(EXPECTED_VERSION)) {
    std::printf("header says %s, package says %s\n", header_version, TEXT(EXPECTED_VERSION));
    return 1;
  }

  const auto layout = ba::block_layout::from_sequence({.context = {1, 2}, .final_block = 1});
  const auto plan =
      ba::make_tile_plan(ba::block_attention_mask(layout), ba::cpu::tile_shape_for<float>(8));
  const std::vector<float> ones(32, 1.0F);
  std::vector<float> o(32);
  const auto view = [](auto& values) { return ba::token_major(values.data(), 4, 1, 8); };
  ba::cpu::forward({.q = view(ones), .k = view(ones), .v = view(ones), .o = view(o)}, plan);
  for (const float value : o) {
    if (value != 1.0F) return 1;
  }
}
