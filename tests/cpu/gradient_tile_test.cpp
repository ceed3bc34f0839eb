// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/gradient_tile.hpp>

#include <cmath>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

using arch = cpu::default_arch;

/// A matrix with whole numbers: every product and sum below 2^24 is exact in any order.
struct whole_matrix {
  index_t rows, columns;
  std::vector<float> values;

  whole_matrix(random_source& random, index_t r, index_t c) : rows(r), columns(c) {
    for (index_t i = 0; i < r * c; ++i) {
      values.push_back(static_cast<float>(random.integer(-3, 3)));
    }
  }
  const float* row(index_t r) const { return values.data() + r * columns; }
  float at(index_t r, index_t c) const { return row(r)[c]; }
};

}  // namespace

// The gradients pass is replaced by whole numbers (S and dP themselves, hidden columns 0), so that
// all five products can be compared without rounding.
TEST_CASE("gradient_tile multiplies its five products, also around group and panel widths") {
  using tile = cpu::detail::gradient_tile<float, arch>;
  random_source random(test_seed(1));
  for (const index_t rows : {1, 7, 8, 9, 20}) {
    for (const index_t columns : {1, 15, 16, 33, 70}) {
      const index_t head_dim = 8 * random.integer(1, 9);
      const index_t value_dim = 8 * random.integer(1, 9);
      CAPTURE(rows, columns, head_dim, value_dim);
      const whole_matrix q(random, rows, head_dim), d_o(random, rows, value_dim),
          k(random, columns, head_dim), v(random, columns, value_dim);
      const cpu::detail::gradient_tile_sizes sizes = {rows + 3, columns + 5, head_dim, value_dim};
      const workspace_buffer memory(tile::bytes(sizes));
      std::fill(memory.bytes().begin(), memory.bytes().end(), std::byte{0xff});  // NaN
      tile work(sizes, memory.bytes());
      work.begin_keys(columns);
      for (index_t j = 0; j < columns; j += tile::width) {
        const index_t count = std::min(tile::width, columns - j);
        cpu::detail::pack_key_panel<float, arch>(k.row(j), head_dim, count, head_dim,
                                                 work.key_columns() + j * head_dim);
        cpu::detail::pack_key_panel<float, arch>(v.row(j), value_dim, count, value_dim,
                                                 work.value_columns() + j * value_dim);
      }
      cpu::detail::pack_values<float, arch>(
          heads_view<const float>{k.values.data(), columns, 1, head_dim, head_dim, 0}, 0,
          {0, columns}, 0, sizes.columns, work.key_rows());
      work.begin_queries(rows);
      for (index_t r = 0; r < rows; ++r) {
        std::copy_n(q.row(r), head_dim, work.q_row(r));
        std::copy_n(d_o.row(r), value_dim, work.d_o_row(r));
      }
      for (index_t g = 0; g < work.groups(); ++g) {
        const index_t begin = random.integer(0, columns);
        work.columns_of_group(g) = {begin, random.integer(begin, columns)};
      }
      const auto is_seen = [&](index_t r, index_t j) {
        return work.columns_of_group(r / tile::group_rows).contains(j);
      };
      work.score();
      std::vector<float> s(static_cast<std::size_t>(rows * columns)), d_s(s.size());
      for (index_t r = 0; r < rows; ++r) {
        for (index_t j = 0; j < columns; ++j) {
          const auto at = static_cast<std::size_t>(r * columns + j);
          if (!is_seen(r, j)) {
            work.score_row(r)[j] = work.d_score_row(r)[j] = 0;
            continue;
          }
          for (index_t t = 0; t < head_dim; ++t) s[at] += q.at(r, t) * k.at(j, t);
          for (index_t t = 0; t < value_dim; ++t) d_s[at] += d_o.at(r, t) * v.at(j, t);
          CHECK(work.score_row(r)[j] == s[at]);
          CHECK(work.d_score_row(r)[j] == d_s[at]);
        }
      }
      const index_t stride = round_up(head_dim, tile::width);
      std::vector<float> d_q(static_cast<std::size_t>(rows * stride), 1.0F);
      work.add_to_keys();
      work.add_to_queries(d_q.data(), stride);
      for (index_t r = 0; r < rows; ++r) {
        for (index_t t = 0; t < head_dim; ++t) {
          float sum = 1;
          for (index_t j = 0; j < columns; ++j) {
            sum += d_s[static_cast<std::size_t>(r * columns + j)] * k.at(j, t);
          }
          CHECK(d_q[static_cast<std::size_t>(r * stride + t)] == sum);
        }
      }
      for (index_t j = 0; j < columns; ++j) {
        for (index_t t = 0; t < std::max(head_dim, value_dim); ++t) {
          float key = 0;
          float value = 0;
          for (index_t r = 0; r < rows; ++r) {
            const auto at = static_cast<std::size_t>(r * columns + j);
            if (t < head_dim) key += d_s[at] * q.at(r, t);
            if (t < value_dim) value += s[at] * d_o.at(r, t);
          }
          if (t < head_dim) CHECK(work.d_k_row(j)[t] == key);
          if (t < value_dim) CHECK(work.d_v_row(j)[t] == value);
        }
      }
    }
  }
}
