// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/online_tile.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;
using cpu::detail::online_tile;
using cpu::detail::online_tile_sizes;
using cpu::detail::score_transform;

namespace {

using arch = cpu::default_arch;

enum class value_source { packed, in_place };

/// One tile of rows over `key_tiles` tiles of keys, each row seeing random runs of keys, against
/// the softmax of one pass in fp64.
template <class Panel, class T>
class tile_case {
 public:
  using tile = online_tile<Panel, arch>;
  using C = typename tile::C;
  static constexpr index_t columns = 2 * tile::width;

  tile_case(std::uint64_t seed, index_t rows, index_t head_dim, index_t value_dim, index_t v_stride)
      : random_(seed),
        sizes_{.rows = rows, .columns = columns, .head_dim = head_dim, .value_dim = value_dim},
        v_stride_(v_stride),
        q_(random_.normal_values<T>(rows * head_dim)),
        scale_(0.7 / std::sqrt(static_cast<double>(head_dim))),
        buffer_(tile::bytes(sizes_) + workspace_alignment) {
    // 0xff is NaN in every format: nothing may be used before it is written.
    std::memset(buffer_.bytes().data(), 0xff, buffer_.bytes().size());
    keys_of_row_.resize(static_cast<std::size_t>(rows));
  }

  /// `tolerance` bounds |o| and |lse| errors; values are standard normal.
  void check(index_t key_tiles, value_source source, double tolerance) {
    const auto memory = buffer_.bytes().first(static_cast<std::size_t>(tile::bytes(sizes_)));
    tile work(sizes_, memory);
    const auto transform = score_transform<C>::template from<Panel>(scale_, 0);
    work.begin(sizes_.rows, transform);
    for (index_t row = 0; row < sizes_.rows; ++row) {
      cpu::detail::pack_row<Panel, arch>(q_.data() + row * sizes_.head_dim, sizes_.head_dim,
                                         transform.q_factor, work.q_row(row));
    }
    for (index_t t = 0; t < key_tiles; ++t) take_tile(work, source);
    for (index_t row = 0; row < sizes_.rows; ++row) check_row(work, row, tolerance);
    for (const std::byte b : buffer_.bytes().subspan(memory.size())) CHECK(b == std::byte{0xff});
  }

 private:
  void take_tile(tile& work, value_source source) {
    const index_t keys = random_.integer(1, columns);
    const index_t first = static_cast<index_t>(k_.size()) / sizes_.head_dim;
    for (const T& value : random_.normal_values<T>(keys * sizes_.head_dim)) k_.push_back(value);
    for (const T& value : random_.normal_values<T>(keys * v_stride_)) v_.push_back(value);

    // Up to two runs of keys for each row; rows with row % 5 == 3 see nothing at all, and some
    // groups skip the whole tile.
    std::vector<std::vector<index_range>> runs(static_cast<std::size_t>(sizes_.rows));
    for (index_t g = 0; g < work.groups(); ++g) {
      index_range& reached = work.columns_of_group(g);
      reached = {columns, 0};
      const bool skip = random_.chance(0.2);
      for (index_t row = work.group(g).begin; row < work.group(g).end && !skip; ++row) {
        if (row % 5 == 3) continue;
        auto& of_row = runs[static_cast<std::size_t>(row)];
        index_t at = random_.integer(0, keys);
        for (int run = 0; run < 2 && at < keys; ++run) {
          const index_t end = random_.integer(at + 1, keys);
          of_row.push_back({at, end});
          reached = {std::min(reached.begin, at), std::max(reached.end, end)};
          for (index_t j = at; j < end; ++j)
            keys_of_row_[static_cast<std::size_t>(row)].push_back(first + j);
          at = random_.integer(end, keys);
        }
      }
    }
    const T* const k = k_.data() + first * sizes_.head_dim;
    const index_t steps = cpu::detail::steps_for<Panel, arch>(sizes_.head_dim);
    std::vector<Panel> panels(static_cast<std::size_t>(columns * steps));
    for (index_t j = 0; j < keys; j += tile::width) {
      cpu::detail::pack_key_panel<Panel, arch>(k + j * sizes_.head_dim, sizes_.head_dim,
                                               std::min(tile::width, keys - j), sizes_.head_dim,
                                               panels.data() + j * steps);
    }
    const index_t first_panel = std::min(keys, tile::width);  // in two calls: pieces of a tile
    work.score_packed(panels.data(), {0, first_panel});
    work.score_packed(panels.data() + tile::width * steps, {first_panel, keys});
    work.softmax([&](index_t row, index_range* out) {
      const auto& of_row = runs[static_cast<std::size_t>(row)];
      std::copy(of_row.begin(), of_row.end(), out);
      return static_cast<index_t>(of_row.size());
    });
    const heads_view<const T> v{
        v_.data() + first * v_stride_, keys, 1, sizes_.value_dim, v_stride_, 0};
    if (source == value_source::packed) {
      const index_t panel_steps = cpu::detail::steps_for<Panel, arch>(columns);
      std::vector<Panel> values(static_cast<std::size_t>(
          ceil_divide(sizes_.value_dim, tile::width) * panel_steps * tile::width));
      cpu::detail::pack_values<Panel, arch>(v, 0, {0, keys}, 0, panel_steps, values.data());
      work.add_values(values.data(), panel_steps * tile::width, tile::width, {0, keys});
    } else if constexpr (std::is_same_v<Panel, T>) {
      const index_t part = keys / 2;
      work.add_values(v.data, tile::width, v_stride_, {0, part});
      work.add_values(v.row(part, 0), tile::width, v_stride_, {part, keys});
    }
  }

  void check_row(const tile& work, index_t row, double tolerance) const {
    CAPTURE(row);
    const auto found = work.finish(row);
    const auto& keys = keys_of_row_[static_cast<std::size_t>(row)];
    const auto dim = static_cast<std::size_t>(sizes_.value_dim);
    std::vector<double> o(dim);
    double sum = 0;
    for (const index_t key : keys) {
      double score = 0;
      for (index_t t = 0; t < sizes_.head_dim; ++t) {
        score += at(q_, row * sizes_.head_dim + t) * at(k_, key * sizes_.head_dim + t);
      }
      const double p = std::exp(scale_ * score);
      sum += p;
      for (index_t t = 0; t < sizes_.value_dim; ++t)
        o[static_cast<std::size_t>(t)] += p * at(v_, key * v_stride_ + t);
    }
    double largest = 0;
    for (std::size_t t = 0; t < dim; ++t) {
      const double expected = keys.empty() ? 0.0 : o[t] / sum;
      const double error = std::abs(static_cast<double>(found.o[t] * found.factor) - expected);
      if (!(error <= largest)) largest = error;
    }
    if (keys.empty()) {
      CHECK(largest == 0);
      CHECK(found.lse == -std::numeric_limits<C>::infinity());
    } else {
      CHECK(largest <= tolerance);
      CHECK(std::abs(static_cast<double>(found.lse) - std::log(sum)) <= tolerance);
    }
  }

  static double at(const std::vector<T>& values, index_t index) {
    return static_cast<double>(load_scalar(values[static_cast<std::size_t>(index)]));
  }

  random_source random_;
  online_tile_sizes sizes_;
  index_t v_stride_;
  std::vector<T> q_;
  std::vector<T> k_;
  std::vector<T> v_;
  double scale_;
  workspace_buffer buffer_;
  std::vector<std::vector<index_t>> keys_of_row_;
};

template <class Panel, class T>
void check_tiles(std::uint64_t seed, double tolerance) {
  CAPTURE(seed);
  using tile = online_tile<Panel, arch>;
  for (const index_t rows : {index_t{1}, tile::group_rows - 1, tile::group_rows,
                             tile::group_rows + 1, 3 * tile::group_rows + 2}) {
    for (const index_t head_dim : {8, 64}) {
      for (const index_t value_dim : {8, 72}) {
        for (const index_t key_tiles : {0, 1, 4}) {
          CAPTURE(rows, head_dim, value_dim, key_tiles);
          tile_case<Panel, T>(seed, rows, head_dim, value_dim, value_dim + 3)
              .check(key_tiles, value_source::packed, tolerance);
        }
      }
    }
  }
}

}  // namespace

// |score| stays below 6: one ulp of it in the exponent is a relative error of a few epsilon, and
// outputs are averages of values below 6.
TEST_CASE("online_tile is one softmax over all its tiles, fp32", "[online_tile]") {
  check_tiles<float, float>(test_seed(111), 5e-6);
}

TEST_CASE("online_tile is one softmax over all its tiles, fp64", "[online_tile]") {
  check_tiles<double, double>(test_seed(112), 1e-14);
}

TEST_CASE("online_tile reads 16-bit storage through fp32 panels", "[online_tile]") {
  check_tiles<float, bfloat16>(test_seed(113), 5e-6);
  check_tiles<float, float16>(test_seed(114), 5e-6);
}

#if defined(__AVX512BF16__)
// Weights are rounded to bf16: 2^-8 of each, of values below 6.
TEST_CASE("online_tile multiplies bf16 pairs", "[online_tile]") {
  check_tiles<cpu::detail::bf16_pair, bfloat16>(test_seed(115), 6 * 0x1p-8);
}
#endif

TEMPLATE_TEST_CASE("online_tile reads values in place, also 4 KiB apart",
                   "[online_tile]",
                   float,
                   double) {
  using C = TestType;
  const std::uint64_t seed = test_seed(116);
  CAPTURE(seed);
  const double tolerance = std::is_same_v<C, float> ? 5e-6 : 1e-14;
  constexpr index_t value_dim = 2 * online_tile<C, arch>::width;
  constexpr index_t page = 4096 / static_cast<index_t>(sizeof(C));
  for (const index_t rows : {1, 13}) {
    for (const index_t stride : {value_dim, value_dim + 1, page}) {
      CAPTURE(rows, stride);
      tile_case<C, C>(seed, rows, 24, value_dim, stride)
          .check(3, value_source::in_place, tolerance);
    }
  }
}

TEST_CASE("online_tile keeps the state exact while maxima grow and vanish", "[online_tile]") {
  // Three tiles of one key each with scores 0, 100 and -100: the middle one is all that counts.
  using tile = online_tile<float, arch>;
  constexpr index_t dim = 8;
  const online_tile_sizes sizes{.rows = 1, .columns = tile::width, .head_dim = dim, .value_dim = 8};
  const workspace_buffer buffer(tile::bytes(sizes));
  tile work(sizes, buffer.bytes());
  work.begin(1, score_transform<float>::from(1, 0));
  const std::vector<float> q = {1, 0, 0, 0, 0, 0, 0, 0};
  cpu::detail::pack_row<float, arch>(q.data(), dim, 1.0F, work.q_row(0));
  for (const float score : {0.0F, 100.0F, -100.0F}) {
    const std::vector<float> k = {score, 0, 0, 0, 0, 0, 0, 0};
    std::vector<float> panel(static_cast<std::size_t>(dim * tile::width));
    cpu::detail::pack_key_panel<float, arch>(k.data(), dim, 1, dim, panel.data());
    std::vector<float> values(static_cast<std::size_t>(tile::width), score + 1);
    work.set_columns({0, 1});
    work.score_packed(panel.data(), {0, 1});
    work.softmax([](index_t, index_range* runs) {
      runs[0] = {0, 1};
      return index_t{1};
    });
    work.add_values(values.data(), tile::width, tile::width, {0, 1});
  }
  const auto row = work.finish(0);
  CHECK(row.o[0] * row.factor == Approx(101).epsilon(1e-6));
  CHECK(row.lse == Approx(100).epsilon(1e-6));
}
