// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/block_dropout_options.hpp>

#include <limits>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using blockattn::detail::check_block_dropout;
using blockattn::detail::draws_kept;

TEST_CASE("a draw compares its 53 bits exactly", "[block_dropout]") {
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    const double drawn = static_cast<double>(random_bits(seed, 4, 2) >> 11) * 0x1p-53;
    const auto kept = [&](double keep_probability) {
      return draws_kept({.keep_probability = keep_probability, .seed = seed}, 4, 2);
    };
    CHECK_FALSE(kept(drawn));
    CHECK(kept(std::nextafter(drawn, 2.0)));
    CHECK(kept(1));
    CHECK_FALSE(kept(0));
  }
}

TEST_CASE("options that mean nothing are refused by name", "[block_dropout]") {
  for (const double bad : {-0.001, 1.001, std::numeric_limits<double>::quiet_NaN(),
                           std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH(
        check_block_dropout({.keep_probability = bad}),
        contains("block_dropout_options: keep_probability is") && contains("must be in [0, 1]"));
  }
  CHECK_THROWS_WITH(check_block_dropout({.rule = static_cast<block_dropout_rule>(4)}),
                    contains("rule is 4, not one of its enumerators 0 to 3"));
  CHECK_THROWS_WITH(check_block_dropout({.sink_visibility = static_cast<sink_visibility>(3)}),
                    contains("sink_visibility is 3, not one of its enumerators 0 to 2"));
  for (const auto rule : {block_dropout_rule::hide_context, block_dropout_rule::global_blocks,
                          block_dropout_rule::random_final}) {
    CHECK_THROWS_WITH(check_block_dropout({.rule = rule, .exempt_final_block = true}),
                      contains("exempt_final_block is true, but only the rule hide_pairs"));
    CHECK_NOTHROW(check_block_dropout({.rule = rule}));
  }
  CHECK_NOTHROW(check_block_dropout({.keep_probability = 0, .exempt_final_block = true}));
}
