// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/rope/rotate_row.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/rope_variants.hpp"

namespace blockattn_test {

TEST_CASE("rotate_row in place gives the bits of out of place, and touches nothing else",
          "[rope]") {
  const std::uint64_t seed = test_seed(3);
  CAPTURE(seed);
  random_source random(seed);
  for (const auto& [name, rotation] : rope_variants()) {
    CAPTURE(name);
    const auto dim = static_cast<std::size_t>(rotation.head_dim());
    const auto pairs = static_cast<std::size_t>(rotation.pairs());
    std::vector<float> cosines(pairs), sines(pairs);
    rotation.angles(random.real(-100, 100), cosines.data(), sines.data());
    const auto row = random.normal_values<float>(rotation.head_dim());
    std::vector<float> in_place = row;
    std::vector<float> apart(dim + 2, 42.0F);  // a guard on both sides
    rotate_row(rotation, row.data(), apart.data() + 1, cosines.data(), sines.data());
    rotate_row(rotation, in_place.data(), in_place.data(), cosines.data(), sines.data());
    CHECK(std::vector<float>(apart.begin() + 1, apart.end() - 1) == in_place);
    CHECK(apart.front() == 42.0F);
    CHECK(apart.back() == 42.0F);
    CHECK((pairs == 0 || in_place != row));
    const std::ptrdiff_t first_kept = rotation.rotary_dim();
    CHECK(std::equal(row.begin() + first_kept, row.end(), in_place.begin() + first_kept));
  }
}

TEST_CASE("The pairings are the same rotation on differently ordered rows", "[rope]") {
  const std::uint64_t seed = test_seed(4);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t dim : {2, 4, 30, 32, 34, 62, 64, 66, 128}) {
    CAPTURE(dim);
    const rope split({.head_dim = dim, .pairing = rope_pairing::half_split});
    const rope interleaved({.head_dim = dim, .pairing = rope_pairing::interleaved});
    const auto pairs = static_cast<std::size_t>(dim / 2);
    std::vector<float> cosines(pairs), sines(pairs);
    split.angles(17, cosines.data(), sines.data());
    auto row = random.normal_values<float>(dim);
    std::vector<float> zipped(row.size());
    for (std::size_t i = 0; i < pairs; ++i) {
      zipped[2 * i] = row[i];
      zipped[2 * i + 1] = row[i + pairs];
    }
    rotate_row(split, row.data(), row.data(), cosines.data(), sines.data());
    rotate_row(interleaved, zipped.data(), zipped.data(), cosines.data(), sines.data());
    for (std::size_t i = 0; i < pairs; ++i) {
      // The compiler may fuse multiply and add in one loop and not in the other.
      CHECK(std::abs(zipped[2 * i] - row[i]) < 1e-6F);
      CHECK(std::abs(zipped[2 * i + 1] - row[i + pairs]) < 1e-6F);
    }
  }
}

}  // namespace blockattn_test
