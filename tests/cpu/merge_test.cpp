// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/cpu/merge.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/cpu_backend.hpp"
#include "support/catch.hpp"
#include "support/merge_problem.hpp"
#include "support/random.hpp"
#include "support/shuffling_executor.hpp"

using namespace blockattn_test;

namespace {

constexpr index_t tokens = 37;  // several tasks, the last one partial
constexpr index_t heads = 3;
constexpr index_t value_dim = 40;
constexpr std::size_t rows = tokens * heads;

/// States of every row over one part of the keys.
template <class P>
struct part {
  using C = accumulator_t<P>;
  std::vector<P> o = std::vector<P>(rows * value_dim);
  std::vector<C> lse = std::vector<C>(rows);

  partial_state<P> state() const {
    return {.o = token_major<const P>(o.data(), tokens, heads, value_dim),
            .lse = token_major_lse<const C>(lse.data(), tokens, heads)};
  }
};

/// Scored keys of each row and the softmax over any part of them, by the definition in fp64.
class keyed_rows {
 public:
  keyed_rows(random_source& random, index_t keys) : keys_(keys) {
    for (std::size_t row = 0; row < rows; ++row) {
      for (index_t key = 0; key < keys; ++key) scores_.push_back(random.real(-4, 4));
    }
    values_ = random.normal_values<double>(static_cast<index_t>(rows) * keys * value_dim);
  }

  double score(std::size_t row, index_t key) const { return scores_[index(row, key)]; }

  /// The state over the keys for which weight(row, key) > 0, each counted that often.
  template <class P, class Weight>
  part<P> softmax(const Weight& weight) const {
    part<P> result;
    for (std::size_t row = 0; row < rows; ++row) {
      double sum = 0;
      std::vector<double> o(value_dim);
      for (index_t key = 0; key < keys_; ++key) {
        const double p = weight(row, key) * std::exp(score(row, key));
        sum += p;
        for (std::size_t t = 0; t < value_dim; ++t) {
          o[t] += p * values_[index(row, key) * value_dim + t];
        }
      }
      for (std::size_t t = 0; t < value_dim; ++t) {
        store_scalar(result.o[row * value_dim + t], sum > 0 ? o[t] / sum : 0.0);
      }
      result.lse[row] = static_cast<typename part<P>::C>(std::log(sum));
    }
    return result;
  }

  /// The state over the keys of one part of a partition.
  template <class P>
  part<P> part_of(const std::vector<index_t>& partition, index_t which) const {
    return softmax<P>([&](std::size_t, index_t key) {
      return partition[static_cast<std::size_t>(key)] == which ? 1.0 : 0.0;
    });
  }

 private:
  std::size_t index(std::size_t row, index_t key) const {
    return row * static_cast<std::size_t>(keys_) + static_cast<std::size_t>(key);
  }

  index_t keys_;
  std::vector<double> scores_;
  std::vector<double> values_;
};

std::vector<index_t> random_partition(random_source& random, index_t keys, index_t parts) {
  std::vector<index_t> partition;
  for (index_t key = 0; key < keys; ++key) partition.push_back(random.integer(0, parts - 1));
  return partition;
}

/// Result rows start as NaN, so that one that is not written shows.
template <class P>
part<P> unwritten() {
  part<P> result;
  for (P& value : result.o) store_scalar(value, std::nan(""));
  std::fill(result.lse.begin(), result.lse.end(), static_cast<typename part<P>::C>(std::nan("")));
  return result;
}

template <class P, class O = P>
part<O> merged(const std::vector<partial_state<P>>& states,
               std::span<const accumulator_t<P, O>> sink_logits = {}) {
  part<O> result = unwritten<O>();
  cpu::merge<P, O>({.states = states,
                    .o = token_major(result.o.data(), tokens, heads, value_dim),
                    .lse = token_major_lse(result.lse.data(), tokens, heads),
                    .sink_logits = sink_logits});
  return result;
}

/// Averages of values below 5 with weights that carry a few roundings; 16-bit states and results
/// are rounded once each.
template <class P>
double tolerance() {
  switch (format_of<P>) {
    case storage_format::fp64:
      return 1e-14;
    case storage_format::fp32:
      return 4e-6;
    case storage_format::bf16:
      return 2 * 5 * 0x1p-8;
    default:
      return 2 * 5 * 0x1p-11;
  }
}

template <class P>
void check_close(const part<P>& found, const part<P>& expected, double bound = tolerance<P>()) {
  double largest = 0;
  for (std::size_t i = 0; i < found.o.size(); ++i) {
    const double error = std::abs(static_cast<double>(load_scalar(found.o[i])) -
                                  static_cast<double>(load_scalar(expected.o[i])));
    if (!(error <= largest)) largest = error;
  }
  CHECK(largest <= bound);
  double largest_lse = 0;
  const double lse_bound = format_of<P> == storage_format::fp64 ? 1e-14 : 4e-6;
  for (std::size_t i = 0; i < rows; ++i) {
    if (found.lse[i] == expected.lse[i]) continue;  // -inf on both sides
    const double error = std::abs(static_cast<double>(found.lse[i] - expected.lse[i]));
    if (!(error <= largest_lse)) largest_lse = error;
  }
  CHECK(largest_lse <= lse_bound);
}

template <class P>
bool same_bits(const part<P>& a, const part<P>& b) {
  return std::memcmp(a.o.data(), b.o.data(), a.o.size() * sizeof(P)) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(typename part<P>::C)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("any split of the keys, in any order and tree, merges to the joint state",
                   "[merge]",
                   float,
                   double,
                   bfloat16,
                   float16) {
  using P = TestType;
  const std::uint64_t seed = test_seed(121);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t parts : {1, 2, 3, 7}) {
    CAPTURE(parts);
    constexpr index_t keys = 9;
    const keyed_rows source(random, keys);
    const auto joint = source.softmax<P>([](std::size_t, index_t) { return 1.0; });
    const auto partition = random_partition(random, keys, parts);  // parts may be empty
    std::vector<part<P>> pieces;
    for (index_t p = 0; p < parts; ++p) pieces.push_back(source.part_of<P>(partition, p));
    std::shuffle(pieces.begin(), pieces.end(), random.engine());
    std::vector<partial_state<P>> states;
    for (const auto& piece : pieces) states.push_back(piece.state());
    check_close(merged(states), joint);

    // A tree: the first two, then that with the next, and so on; each level rounds to P again.
    part<P> tree = pieces.front();
    for (std::size_t p = 1; p < pieces.size(); ++p) {
      tree = merged<P>({tree.state(), pieces[p].state()});
    }
    check_close(tree, joint, static_cast<double>(parts + 1) * tolerance<P>());
  }
}

TEST_CASE("merge is the formula, for every storage, size and kind of state", "[merge]") {
  const std::uint64_t seed = test_seed(133);
  CAPTURE(seed);
  random_source random(seed);
  for (const index_t rows_of_tokens : {0, 1, 16, 19}) {
    for (const index_t dim : {0, 1, 15, 16, 17, 64, 100}) {
      const merge_sizes sizes = {random.integer(0, 5), rows_of_tokens, random.integer(1, 3), dim};
      check_merge_formulas<double, double>(cpu_backend{}, random, sizes, 1e-14);
      check_merge_formulas<float, float>(cpu_backend{}, random, sizes, 4e-6);
      check_merge_formulas<bfloat16, bfloat16>(cpu_backend{}, random, sizes, 4e-6);
      check_merge_formulas<float16, float>(cpu_backend{}, random, sizes, 4e-6);
    }
  }
}

TEST_CASE("states of 16 bits merge to an fp32 result", "[merge]") {
  random_source random(test_seed(122));
  const keyed_rows source(random, 6);
  const std::vector<index_t> partition = {0, 0, 1, 1, 1, 0};
  const auto a = source.part_of<bfloat16>(partition, 0);
  const auto b = source.part_of<bfloat16>(partition, 1);
  const auto found = merged<bfloat16, float>({a.state(), b.state()});
  const auto joint = source.softmax<float>([](std::size_t, index_t) { return 1.0; });
  check_close(found, joint, 5 * 0x1p-8);
}

TEMPLATE_TEST_CASE("one state merges to itself, and (0, -inf) changes no bit",
                   "[merge]",
                   float,
                   double,
                   bfloat16) {
  using P = TestType;
  random_source random(test_seed(123));
  const keyed_rows source(random, 5);
  const auto all = source.softmax<P>([](std::size_t, index_t) { return 1.0; });
  CHECK(same_bits(merged<P>({all.state()}), all));
  // An absent state may hold anything.
  part<P> absent = unwritten<P>();
  std::fill(absent.lse.begin(), absent.lse.end(), -infinity<typename part<P>::C>);
  CHECK(same_bits(merged<P>({absent.state(), all.state(), absent.state()}), all));

  const part<P> nothing = merged<P>({absent.state(), absent.state()});
  part<P> empty;
  for (P& value : empty.o) store_scalar(value, 0.0);
  std::fill(empty.lse.begin(), empty.lse.end(), -infinity<typename part<P>::C>);
  CHECK(same_bits(nothing, empty));
  CHECK(same_bits(merged<P>({}), empty));
}

TEST_CASE("a state that is absent in some rows is not read there", "[merge]") {
  random_source random(test_seed(124));
  const keyed_rows source(random, 5);
  const auto all = source.softmax<float>([](std::size_t, index_t) { return 1.0; });
  part<float> half = all;
  const std::vector<float> no_weights(rows, std::nanf(""));
  for (std::size_t row = 0; row < rows; row += 2) {
    half.lse[row] = -infinity<float>;
    std::fill_n(half.o.begin() + static_cast<std::ptrdiff_t>(row * value_dim), value_dim,
                std::nanf(""));
  }
  const auto found = merged<float>({half.state(), all.state()});
  for (std::size_t row = 0; row < rows; ++row) {
    // Where both are there, the same keys count twice.
    const float doubled = row % 2 == 0 ? 0.0F : std::log(2.0F);
    CHECK(std::abs(found.lse[row] - (all.lse[row] + doubled)) <= 1e-6F);
    for (std::size_t t = row * value_dim; t < (row + 1) * value_dim; ++t) {
      REQUIRE(std::abs(found.o[t] - all.o[t]) <= 1e-6F);
    }
  }
  // The same with a log-weight of -inf, and with row weights that are junk where the state is not.
  auto out = all.state();
  out.log_weight = -std::numeric_limits<double>::infinity();
  CHECK(same_bits(merged<float>({out, all.state()}), all));
  part<float> gone = unwritten<float>();
  std::fill(gone.lse.begin(), gone.lse.end(), -infinity<float>);
  auto weighted = gone.state();
  weighted.row_log_weights = token_major_lse(no_weights.data(), tokens, heads);
  CHECK(same_bits(merged<float>({weighted, all.state()}), all));
}

TEST_CASE("APE: the context enters with sigma * lse", "[merge]") {
  const std::uint64_t seed = test_seed(125);
  CAPTURE(seed);
  random_source random(seed);
  constexpr index_t keys = 10;
  const keyed_rows source(random, keys);
  const std::vector<index_t> partition = {0, 0, 0, 0, 0, 0, 1, 1, 1, 1};  // 0: context
  const auto context = source.part_of<double>(partition, 0);
  const auto other = source.part_of<double>(partition, 1);
  const auto with_sigma = [&](double sigma) {
    auto state = context.state();
    state.log_weight_scale = sigma;
    return merged<double>({state, other.state()});
  };
  // sigma = 1 is plain softmax.
  check_close(with_sigma(1), source.softmax<double>([](std::size_t, index_t) { return 1.0; }));
  // The weight of a context key is Z_c^(sigma - 1) exp(s_j).
  for (const double sigma : {0.81, 0.5, -1.0}) {
    check_close(with_sigma(sigma), source.softmax<double>([&](std::size_t row, index_t key) {
      return partition[static_cast<std::size_t>(key)] == 0
                 ? std::exp((sigma - 1) * context.lse[row])
                 : 1.0;
    }));
  }
  // sigma = 0: the context's share is 1 / (1 + exp(lse_other)).
  const auto found = with_sigma(0);
  for (std::size_t row = 0; row < rows; ++row) {
    const double share = 1 / (1 + std::exp(other.lse[row]));
    for (std::size_t t = row * value_dim; t < (row + 1) * value_dim; ++t) {
      const double expected = share * context.o[t] + (1 - share) * other.o[t];
      REQUIRE(std::abs(found.o[t] - expected) <= 1e-14);
    }
    CHECK(std::abs(found.lse[row] - std::log1p(std::exp(other.lse[row]))) <= 1e-14);
  }
}

TEST_CASE("a log weight counts the keys of a state exp(w) times", "[merge]") {
  random_source random(test_seed(126));
  const keyed_rows source(random, 8);
  const auto partition = random_partition(random, 8, 2);
  const auto a = source.part_of<double>(partition, 0);
  const auto b = source.part_of<double>(partition, 1);
  auto heavy = a.state();
  heavy.log_weight = std::log(3.0);
  check_close(merged<double>({heavy, b.state()}),
              source.softmax<double>([&](std::size_t, index_t key) {
                return partition[static_cast<std::size_t>(key)] == 0 ? 3.0 : 1.0;
              }));
}

TEST_CASE("Landmark: blocks enter with the landmark's logit in place of lse", "[merge]") {
  const std::uint64_t seed = test_seed(127);
  CAPTURE(seed);
  random_source random(seed);
  constexpr index_t keys = 9;
  const keyed_rows source(random, keys);
  const std::vector<index_t> partition = {0, 0, 0, 1, 1, 1, 2, 2, 2};  // 2: own block
  std::vector<part<double>> blocks;
  for (index_t b = 0; b < 3; ++b) blocks.push_back(source.part_of<double>(partition, b));
  std::vector<std::vector<double>> logits(2, std::vector<double>(rows));
  for (auto& of_block : logits) {
    for (double& logit : of_block) logit = random.real(-3, 5);
  }
  const auto with_landmarks = [&] {
    std::vector<partial_state<double>> states;
    for (std::size_t b = 0; b < 3; ++b) states.push_back(blocks[b].state());
    for (std::size_t b = 0; b < 2; ++b) {
      states[b].log_weight_scale = 0;
      states[b].row_log_weights = token_major_lse<const double>(logits[b].data(), tokens, heads);
    }
    return merged<double>(states);
  };
  // weight(j in block c) = g_c * softmax within c: exp(logit_c - lse_c) * exp(s_j), jointly
  // normalised with the own keys.
  check_close(with_landmarks(), source.softmax<double>([&](std::size_t row, index_t key) {
    const auto b = static_cast<std::size_t>(partition[static_cast<std::size_t>(key)]);
    return b == 2 ? 1.0 : std::exp(logits[b][row] - blocks[b].lse[row]);
  }));
  // A landmark logit that equals its block's lse is ordinary softmax without landmarks.
  for (std::size_t b = 0; b < 2; ++b) logits[b] = blocks[b].lse;
  check_close(with_landmarks(), source.softmax<double>([](std::size_t, index_t) { return 1.0; }));
}

TEST_CASE("sink logits are counted once, after the last merge", "[merge]") {
  const std::uint64_t seed = test_seed(128);
  CAPTURE(seed);
  random_source random(seed);
  const keyed_rows source(random, 7);
  const auto partition = random_partition(random, 7, 3);
  const auto joint = source.softmax<double>([](std::size_t, index_t) { return 1.0; });
  std::vector<part<double>> pieces;
  std::vector<partial_state<double>> states;
  for (index_t p = 0; p < 3; ++p) pieces.push_back(source.part_of<double>(partition, p));
  for (const auto& piece : pieces) states.push_back(piece.state());
  const std::vector<double> sinks = {0.5, -infinity<double>, 30.0};
  const auto found = merged<double>(states, sinks);
  part<double> expected = joint;
  for (std::size_t row = 0; row < rows; ++row) {
    const double sink = sinks[row % heads];
    if (sink == -infinity<double>) continue;
    for (std::size_t t = row * value_dim; t < (row + 1) * value_dim; ++t) {
      expected.o[t] *= 1 / (1 + std::exp(sink - joint.lse[row]));
    }
    expected.lse[row] = std::log(std::exp(joint.lse[row]) + std::exp(sink));
  }
  check_close(found, expected);

  // Rows that see nothing end with their sink.
  const auto nothing = merged<double>({}, sinks);
  for (std::size_t row = 0; row < rows; ++row) {
    CHECK(nothing.lse[row] == sinks[row % heads]);
    for (std::size_t t = row * value_dim; t < (row + 1) * value_dim; ++t) {
      REQUIRE(nothing.o[t] == 0);
    }
  }
}

TEST_CASE("the result may be the memory of any of its states", "[merge]") {
  random_source random(test_seed(129));
  const keyed_rows source(random, 7);
  const auto partition = random_partition(random, 7, 3);
  const std::vector<float> sinks = {0.5F, -1.0F, 2.0F};
  std::vector<part<float>> pieces;
  for (index_t p = 0; p < 3; ++p) pieces.push_back(source.part_of<float>(partition, p));
  const auto apart =
      merged<float>({pieces[0].state(), pieces[1].state(), pieces[2].state()}, sinks);
  for (std::size_t p = 0; p < 3; ++p) {
    auto copies = pieces;
    const std::vector<partial_state<float>> states = {copies[0].state(), copies[1].state(),
                                                      copies[2].state()};
    cpu::merge<float>({.states = states,
                       .o = token_major(copies[p].o.data(), tokens, heads, value_dim),
                       .lse = token_major_lse(copies[p].lse.data(), tokens, heads),
                       .sink_logits = sinks});
    CHECK(same_bits(copies[p], apart));
  }
}

TEST_CASE("views of any stride are read, and nothing else is written", "[merge]") {
  random_source random(test_seed(130));
  const keyed_rows source(random, 6);
  const auto partition = random_partition(random, 6, 2);
  const auto a = source.part_of<float>(partition, 0);
  const auto b = source.part_of<float>(partition, 1);
  const auto expected = merged<float>({a.state(), b.state()});

  // Head-major with gaps, last token first.
  constexpr index_t token_stride = value_dim + 3;
  constexpr index_t head_stride = tokens * token_stride + 5;
  const auto spread = [&](std::vector<float>& memory) {
    memory.assign(heads * head_stride + 7, 77.0F);
    return heads_view<float>{memory.data() + (tokens - 1) * token_stride + 1,
                             tokens,
                             heads,
                             value_dim,
                             -token_stride,
                             head_stride};
  };
  std::vector<float> a_memory;
  std::vector<float> o_memory;
  const auto a_view = spread(a_memory);
  const auto o_view = spread(o_memory);
  std::vector<float> a_lse(rows);
  std::vector<float> o_lse(2 * rows, 77.0F);
  for (index_t token = 0; token < tokens; ++token) {
    for (index_t head = 0; head < heads; ++head) {
      const auto row = static_cast<std::size_t>(token * heads + head);
      std::copy_n(a.o.data() + row * value_dim, value_dim, a_view.row(token, head));
      a_lse[static_cast<std::size_t>(head * tokens + token)] = a.lse[row];
    }
  }
  const std::vector<partial_state<float>> states = {
      {.o = a_view, .lse = head_major_lse<const float>(a_lse.data(), tokens, heads)}, b.state()};
  const lse_view<float> lse{o_lse.data(), tokens, heads, 2, 2 * tokens};
  cpu::merge<float>({.states = states, .o = o_view, .lse = lse});
  std::size_t written = 0;
  for (index_t token = 0; token < tokens; ++token) {
    for (index_t head = 0; head < heads; ++head) {
      const auto row = static_cast<std::size_t>(token * heads + head);
      CHECK(lse.at(token, head) == expected.lse[row]);
      CHECK(std::equal(o_view.row(token, head), o_view.row(token, head) + value_dim,
                       expected.o.data() + row * value_dim));
      written += value_dim;
    }
  }
  CHECK(static_cast<std::size_t>(std::count(o_memory.begin(), o_memory.end(), 77.0F)) ==
        o_memory.size() - written);
  CHECK(std::count(o_lse.begin(), o_lse.end(), 77.0F) == static_cast<index_t>(rows));
}

TEST_CASE("merge accepts its exact workspace and nothing less", "[merge]") {
  random_source random(test_seed(131));
  const keyed_rows source(random, 6);
  const auto partition = random_partition(random, 6, 2);
  const auto a = source.part_of<float>(partition, 0);
  const auto b = source.part_of<float>(partition, 1);
  const std::vector<partial_state<float>> states = {a.state(), b.state()};
  const auto expected = merged<float>(states);
  part<float> result = unwritten<float>();
  const merge_arguments<float> arguments{
      .states = states,
      .o = token_major(result.o.data(), tokens, heads, value_dim),
      .lse = token_major_lse(result.lse.data(), tokens, heads)};
  const index_t size = cpu::workspace_size(cpu::prepare_merge<float>(arguments), 1);
  REQUIRE(size > 0);
  const workspace_buffer buffer(size + 64);
  std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{0xff});
  const auto exact = buffer.bytes().first(static_cast<std::size_t>(size));
  serial_executor serial;
  CHECK_THROWS_AS(cpu::merge<float>(arguments, serial, exact.first(exact.size() - 1)), error);
  CHECK_THROWS_AS(cpu::merge<float>(arguments, serial, buffer.bytes().subspan(8)), error);
  for (const float value : result.o) REQUIRE(std::isnan(value));
  cpu::merge<float>(arguments, serial, exact);
  CHECK(same_bits(result, expected));
  for (const std::byte b_after : buffer.bytes().subspan(exact.size()))
    CHECK(b_after == std::byte{0xff});
}

TEST_CASE("a merge has the same bits in any order of tasks on any workers", "[merge]") {
  const std::uint64_t seed = test_seed(132);
  CAPTURE(seed);
  random_source random(seed);
  const keyed_rows source(random, 6);
  const auto partition = random_partition(random, 6, 3);
  std::vector<part<float>> pieces;
  std::vector<partial_state<float>> states;
  for (index_t p = 0; p < 3; ++p) pieces.push_back(source.part_of<float>(partition, p));
  for (const auto& piece : pieces) states.push_back(piece.state());
  const auto expected = merged<float>(states);
  for (const index_t workers : {1, 3}) {
    part<float> result = unwritten<float>();
    cpu::merge<float>({.states = states,
                       .o = token_major(result.o.data(), tokens, heads, value_dim),
                       .lse = token_major_lse(result.lse.data(), tokens, heads)},
                      shuffling_executor(workers, seed));
    CHECK(same_bits(result, expected));
  }
}
