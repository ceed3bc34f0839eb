// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/pack_seen.hpp>
#include <blockattn/plan/make_tile_plan.hpp>

#include "support/catch.hpp"
#include "support/random_attention_mask.hpp"

using namespace blockattn_test;

TEST_CASE("pack_seen_values packs the keys that a head of the group sees, once, and no others") {
  using arch = cpu::default_arch;
  constexpr index_t width = cpu::detail::panel_width<float, arch>;
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    CAPTURE(seed);
    random_source random(seed);
    const index_t tokens = random.integer(1, 60);
    std::vector<tile_plan> plans;
    for (int p = 0; p < 3; ++p) {
      plans.push_back(make_tile_plan(random_masks(random, 0.5)(9, tokens, 3), {4, 4}));
    }
    const std::vector<index_t> head_to_plan = {0, 1, 1, 2};
    const plan_set set(plans, head_to_plan);
    const index_range heads{1, 3 + random.integer(0, 1)};
    const index_t begin = random.integer(0, tokens - 1);
    const index_range keys{begin, random.integer(begin + 1, tokens)};
    std::vector<float> v(static_cast<std::size_t>(tokens));
    for (index_t j = 0; j < tokens; ++j) v[static_cast<std::size_t>(j)] = static_cast<float>(j);
    std::vector<float> out(static_cast<std::size_t>(keys.size() * width), -1.0F);
    cpu::detail::pack_seen_values<float, arch>(
        set, heads, heads_view<const float>{v.data(), tokens, 1, 1, 1, 0}, 0, keys, keys.begin,
        keys.size(), out.data());
    for (index_t j = keys.begin; j < keys.end; ++j) {
      bool is_seen = false;
      for (index_t head = heads.begin; head < heads.end; ++head) {
        for (const index_range& run : set.of_head(head).seen_keys()) {
          is_seen = is_seen || run.contains(j);
        }
      }
      CHECK(out[static_cast<std::size_t>((j - keys.begin) * width)] ==
            (is_seen ? static_cast<float>(j) : -1.0F));
    }
    bool all = true;
    for (const tile_plan& plan : plans) {
      index_t seen = 0;
      for (const index_range& run : plan.seen_keys()) seen += run.size();
      all = all && seen == tokens;
    }
    CHECK(cpu::detail::every_key_is_seen(set) == all);
  }
}
