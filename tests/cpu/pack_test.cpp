// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/pack.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

using arch = cpu::default_arch;

template <class Panel>
using accumulator_of = typename cpu::detail::operand<Panel, arch>::accumulator;

template <class Panel>
constexpr index_t width = cpu::detail::panel_width<accumulator_of<Panel>, arch>;

template <class Panel>
constexpr index_t per_step = cpu::detail::operand<Panel, arch>::values_per_step;

/// Value `index` along the summed dimension, counted from the first step at `steps`, one step in
/// every `stride`.
template <class Panel>
float packed_value(const Panel* steps, index_t stride, index_t index) {
  const Panel& step = steps[index / per_step<Panel> * stride];
  if constexpr (std::is_same_v<Panel, cpu::detail::bf16_pair>) {
    return load_scalar(index % 2 == 0 ? step.first : step.second);
  } else {
    return static_cast<float>(step);
  }
}

/// Panels filled with something that packing must overwrite.
template <class Panel>
std::vector<Panel> dirty_panels(index_t steps) {
  std::vector<Panel> panels(static_cast<std::size_t>(steps));
  if (steps > 0)
    std::memset(static_cast<void*>(panels.data()), 0x5a, panels.size() * sizeof(Panel));
  return panels;
}

template <class Panel>
bool same_bytes(const std::vector<Panel>& a, const std::vector<Panel>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Panel)) == 0;
}

/// Rows `stride` apart; everything between and around them is NaN.
template <class T>
std::vector<T> rows_among_nan(random_source& random, index_t rows, index_t dim, index_t stride) {
  std::vector<T> memory(static_cast<std::size_t>(rows * stride + dim));
  for (T& value : memory) store_scalar(value, std::numeric_limits<double>::quiet_NaN());
  for (index_t row = 0; row < rows; ++row) {
    for (index_t t = 0; t < dim; ++t) {
      store_scalar(memory[static_cast<std::size_t>(row * stride + t)], random.normal());
    }
  }
  return memory;
}

template <class T>
float stored(const std::vector<T>& memory, index_t at) {
  return static_cast<float>(load_scalar(memory[static_cast<std::size_t>(at)]));
}

template <class Panel, class T>
void check_key_panel(std::uint64_t seed) {
  CAPTURE(seed);
  random_source random(seed);
  for (index_t keys = 1; keys <= width<Panel>; ++keys) {
    for (const index_t head_dim : {8, 24, 64}) {
      CAPTURE(keys, head_dim);
      const index_t stride = head_dim + random.integer(0, 9);
      const auto rows = rows_among_nan<T>(random, keys, head_dim, stride);
      const index_t steps = cpu::detail::steps_for<Panel, arch>(head_dim);
      auto panel = dirty_panels<Panel>(steps * width<Panel>);
      cpu::detail::pack_key_panel<Panel, arch>(rows.data(), stride, keys, head_dim, panel.data());
      bool equal = true;
      for (index_t j = 0; j < width<Panel>; ++j) {
        for (index_t t = 0; t < head_dim; ++t) {
          const float found = packed_value(panel.data() + j, width<Panel>, t);
          if (found != (j < keys ? stored(rows, j * stride + t) : 0.0F)) equal = false;
        }
      }
      CHECK(equal);
    }
  }
}

/// Keys [begin, end) of a tensor, packed from `origin` on; other places of the touched steps are 0,
/// other steps stay as they were.
template <class Panel, class T>
void check_value_panels(random_source& random,
                        const index_range& keys,
                        index_t origin,
                        index_t value_dim) {
  CAPTURE(keys.begin, keys.end, origin, value_dim);
  const index_t heads = 2;
  const index_t stride = heads * value_dim + random.integer(0, 5);
  const auto memory = rows_among_nan<T>(random, keys.end + 1, heads * value_dim, stride);
  const heads_view<const T> v{memory.data(), keys.end + 1, heads, value_dim, stride, value_dim};
  const index_t panel_steps = cpu::detail::steps_for<Panel, arch>(keys.end - origin) + 2;
  const index_t panels = ceil_divide(value_dim, width<Panel>);
  const auto before = dirty_panels<Panel>(panels * panel_steps * width<Panel>);
  auto after = before;
  cpu::detail::pack_values<Panel, arch>(v, 1, keys, origin, panel_steps, after.data());
  auto expected = before;
  bool equal = true;
  for (index_t p = 0; p < panels; ++p) {
    for (index_t step = 0; step < panel_steps; ++step) {
      const index_t at = (p * panel_steps + step) * width<Panel>;
      const index_range places{origin + step * per_step<Panel>,
                               origin + (step + 1) * per_step<Panel>};
      if (intersect(places, keys).empty()) continue;  // compared with `before` below
      for (index_t j = 0; j < width<Panel>; ++j) {
        const index_t column = p * width<Panel> + j;
        for (index_t half = 0; half < per_step<Panel>; ++half) {
          const index_t key = places.begin + half;
          // The half of a step that belongs to no key is left as it was, except that columns
          // beyond the tensor are 0.
          if (!keys.contains(key) && column < value_dim) continue;
          const float found = packed_value(after.data() + at + j, 0, half);
          const float wanted =
              column < value_dim ? stored(memory, key * stride + value_dim + column) : 0.0F;
          if (found != wanted) equal = false;
        }
      }
      std::memcpy(static_cast<void*>(&expected[static_cast<std::size_t>(at)]),
                  &after[static_cast<std::size_t>(at)],
                  static_cast<std::size_t>(width<Panel>) * sizeof(Panel));
    }
  }
  CHECK(equal);
  CHECK(same_bytes(after, expected));
}

template <class Panel, class T>
void check_values(std::uint64_t seed) {
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t value_dim : {8, 16, 24, 40, 64, 72}) {
    for (const index_t count : {1, 2, 3, 8, 9}) {
      check_value_panels<Panel, T>(random, {0, count}, 0, value_dim);
      check_value_panels<Panel, T>(random, {3, 3 + count}, 2, value_dim);
      check_value_panels<Panel, T>(random, {4, 4 + count}, 0, value_dim);
    }
  }
}

}  // namespace

TEST_CASE("pack_key_panel transposes keys and fills missing ones with 0", "[pack]") {
  check_key_panel<float, float>(test_seed(51));
  check_key_panel<float, bfloat16>(test_seed(52));
  check_key_panel<float, float16>(test_seed(53));
  check_key_panel<double, double>(test_seed(54));
}

TEST_CASE("pack_key_columns writes its columns of a panel and no others", "[pack]") {
  const std::uint64_t seed = test_seed(64);
  CAPTURE(seed);
  random_source random(seed);
  constexpr index_t dim = 24;
  for (int round = 0; round < 50; ++round) {
    const index_t begin = random.integer(0, width<float>);
    const index_range columns{begin, random.integer(begin, width<float>)};
    CAPTURE(columns.begin, columns.end);
    const index_t stride = dim + random.integer(0, 9);
    const auto rows = rows_among_nan<bfloat16>(random, columns.size(), dim, stride);
    const auto before = dirty_panels<float>(dim * width<float>);
    auto panel = before;
    cpu::detail::pack_key_columns<float, arch>(rows.data(), stride, columns, dim, panel.data());
    auto expected = before;
    for (index_t j = columns.begin; j < columns.end; ++j) {
      for (index_t t = 0; t < dim; ++t) {
        expected[static_cast<std::size_t>(t * width<float> + j)] =
            stored(rows, (j - columns.begin) * stride + t);
      }
    }
    CHECK(same_bytes(panel, expected));
  }
}

TEST_CASE("pack_values places keys from the origin on and fills columns with 0", "[pack]") {
  check_values<float, float>(test_seed(55));
  check_values<float, bfloat16>(test_seed(56));
  check_values<float, float16>(test_seed(57));
  check_values<double, double>(test_seed(58));
}

TEST_CASE("pack_values of no keys writes nothing", "[pack]") {
  const heads_view<const float> v{nullptr, 0, 1, 16, 16, 16};
  const auto before = dirty_panels<float>(width<float>);
  auto after = before;
  cpu::detail::pack_values<float, arch>(v, 0, {0, 0}, 0, 1, after.data());
  CHECK(same_bytes(after, before));
}

TEMPLATE_TEST_CASE("pack_row negates exactly", "[pack]", float, bfloat16, float16) {
  const std::uint64_t seed = test_seed(59);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t dim : {8, 16, 24, 40}) {
    const auto row = random.normal_values<TestType>(dim);
    for (const float factor : {1.0F, -1.0F}) {
      std::vector<float> packed(static_cast<std::size_t>(dim) + 1, 77.0F);
      cpu::detail::pack_row<float, arch>(row.data(), dim, factor, packed.data());
      for (index_t t = 0; t < dim; ++t) {
        CHECK(packed[static_cast<std::size_t>(t)] == factor * stored(row, t));
      }
      CHECK(packed.back() == 77.0F);
    }
  }
}

#if defined(__AVX512BF16__)
TEST_CASE("panels of bf16 pairs hold the same values", "[pack]") {
  using pair = cpu::detail::bf16_pair;
  check_key_panel<pair, bfloat16>(test_seed(61));
  check_values<pair, bfloat16>(test_seed(62));
  random_source random(test_seed(63));
  const auto row = random.normal_values<bfloat16>(24);
  for (const float factor : {1.0F, -1.0F}) {
    std::vector<pair> packed(12);
    cpu::detail::pack_row<pair, arch>(row.data(), 24, factor, packed.data());
    for (index_t t = 0; t < 24; ++t) {
      CHECK(packed_value(packed.data(), 1, t) == factor * stored(row, t));
    }
  }
}
#endif
