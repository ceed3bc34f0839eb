// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/micro_kernel.hpp>

#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using cpu::detail::accumulate_mode;
using cpu::detail::left_order;

namespace {

using arch = cpu::default_arch;

/// The values that one step of an operand holds.
template <class Panel>
std::vector<double> values_of(const Panel& step) {
  if constexpr (std::is_same_v<Panel, cpu::detail::bf16_pair>) {
    return {static_cast<double>(load_scalar(step.first)),
            static_cast<double>(load_scalar(step.second))};
  } else {
    return {static_cast<double>(step)};
  }
}

/// Whole numbers of at most 8: every sum below 2^24 is exact in any order.
template <class Panel>
Panel random_step(random_source& random) {
  const auto whole = [&] { return static_cast<float>(random.integer(-8, 8)); };
  if constexpr (std::is_same_v<Panel, cpu::detail::bf16_pair>) {
    Panel step;
    store_scalar(step.first, whole());
    store_scalar(step.second, whole());
    return step;
  } else {
    return static_cast<Panel>(whole());
  }
}

template <class Panel>
std::vector<Panel> random_steps(random_source& random, index_t count) {
  std::vector<Panel> steps(static_cast<std::size_t>(count));
  for (Panel& step : steps) step = random_step<Panel>(random);
  return steps;
}

template <class Panel>
void check_product(
    random_source& random, index_t rows, index_t steps, accumulate_mode mode, index_t padding) {
  using C = typename cpu::detail::operand<Panel, arch>::accumulator;
  constexpr index_t width = cpu::detail::panel_width<C, arch>;
  const index_t lda = steps + padding;
  const index_t ldb = width + padding;
  const index_t ldc = width + padding;
  CAPTURE(rows, steps, mode == accumulate_mode::add, padding);
  const auto a = random_steps<Panel>(random, rows * lda);
  const auto b = random_steps<Panel>(random, steps * ldb);
  std::vector<C> c(static_cast<std::size_t>(rows * ldc + 1));
  for (C& value : c) value = static_cast<C>(random.integer(-100, 100));
  std::vector<C> expected = c;
  for (index_t r = 0; r < rows; ++r) {
    for (index_t j = 0; j < width; ++j) {
      C& sum = expected[static_cast<std::size_t>(r * ldc + j)];
      if (mode == accumulate_mode::assign) sum = 0;
      for (index_t t = 0; t < steps; ++t) {
        const auto left = values_of(a[static_cast<std::size_t>(r * lda + t)]);
        const auto right = values_of(b[static_cast<std::size_t>(t * ldb + j)]);
        for (std::size_t i = 0; i < left.size(); ++i) {
          sum += static_cast<C>(left[i] * right[i]);
        }
      }
    }
  }
  std::vector<C> product = c;
  cpu::detail::multiply_panel<arch>(rows, a.data(), lda, b.data(), ldb, steps, product.data(), ldc,
                                    mode);
  CHECK(product == expected);  // also that nothing beside the panel was written

  const index_t ldt = rows + padding;
  std::vector<Panel> transposed(static_cast<std::size_t>(steps * ldt));
  for (index_t r = 0; r < rows; ++r) {
    for (index_t t = 0; t < steps; ++t) {
      transposed[static_cast<std::size_t>(t * ldt + r)] = a[static_cast<std::size_t>(r * lda + t)];
    }
  }
  cpu::detail::multiply_panel<arch, left_order::columns>(rows, transposed.data(), ldt, b.data(),
                                                         ldb, steps, c.data(), ldc, mode);
  CHECK(c == expected);
}

template <class Panel>
void check_products(std::uint64_t seed) {
  CAPTURE(seed);
  random_source random(seed);
  for (index_t rows = 1; rows <= cpu::detail::register_tile<arch>::rows; ++rows) {
    for (const index_t steps : {0, 1, 2, 3, 4, 7, 8, 9, 31, 64, 65}) {
      for (const accumulate_mode mode : {accumulate_mode::assign, accumulate_mode::add}) {
        check_product<Panel>(random, rows, steps, mode, 0);
        check_product<Panel>(random, rows, steps, mode, random.integer(1, 9));
      }
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("multiply_panel equals the naive product for every number of rows",
                   "[micro_kernel]",
                   float,
                   double) {
  check_products<TestType>(test_seed(31));
}

#if defined(__AVX512BF16__)
TEST_CASE("multiply_panel equals the naive product for pairs of bf16", "[micro_kernel]") {
  check_products<cpu::detail::bf16_pair>(test_seed(32));
}
#endif

TEST_CASE("multiply_panel with no rows writes nothing", "[micro_kernel]") {
  float c = 5;
  cpu::detail::multiply_panel<arch>(index_t{0}, static_cast<const float*>(nullptr), index_t{0},
                                    static_cast<const float*>(nullptr), index_t{0}, index_t{3}, &c,
                                    index_t{0}, accumulate_mode::assign);
  CHECK(c == 5);
}
