// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/attention/attend_checks.hpp>

#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// A valid call whose parts a test spoils: 5 queries, 4 heads over 2, head_dim 8, value_dim 16; two
/// sequences, the first with two segments and a tail, the second with one segment.
struct call {
  std::vector<float> memory = std::vector<float>(5 * 4 * 16);
  std::vector<float> results = std::vector<float>(5 * 4 * 17);
  rope rotation = rope({.head_dim = 8});
  rope other_rotation = rope({.head_dim = 16});
  std::vector<key_segment<>> first = {segment(3), segment(2)};
  std::vector<key_segment<>> second = {segment(4)};
  std::vector<attend_sequence<>> sequences = {
      {.queries = {0, 2}, .segments = first, .tail = segment(2)},
      {.queries = {3, 5}, .segments = second}};
  attend_arguments<> arguments = {.q = token_major<const float>(memory.data(), 5, 4, 8),
                                  .o = token_major(results.data(), 5, 4, 16),
                                  .lse = token_major_lse(results.data() + 5 * 4 * 16, 5, 4),
                                  .sequences = sequences};
  attend_options options = {.rope = &rotation};

  key_segment<> segment(index_t keys) {
    return {.k = token_major<const float>(memory.data(), keys, 2, 8),
            .v = token_major<const float>(memory.data(), keys, 2, 16)};
  }
  index_t check() const { return blockattn::detail::check_attend("f", arguments, options); }
};

/// The text of the error after `spoil` has changed a valid call; empty when nothing is refused.
template <class Spoil>
std::string refusal(const Spoil& spoil) {
  call c;
  spoil(c);
  try {
    c.check();
  } catch (const error& refused) {
    return refused.what();
  }
  return "";
}

}  // namespace

TEST_CASE("check_attend accepts a valid call and counts kv heads", "[attend_checks]") {
  call c;
  CHECK(c.check() == 2);
  c.arguments.sequences = {};
  CHECK(c.check() >= 1);
  c.arguments = {};
  CHECK(c.check() >= 1);
}

TEST_CASE("check_attend accepts what is legal at the edges", "[attend_checks]") {
  // Empty ranges, segments and tails; a rope that nobody needs; a weight of 0.
  CHECK(refusal([](call& c) { c.sequences[0].queries = {0, 0}; }).empty());
  CHECK(refusal([](call& c) { c.sequences[1].queries = {2, 5}; }).empty());
  CHECK(refusal([](call& c) { c.first[0] = {}; }).empty());
  CHECK(refusal([](call& c) { c.options.rope = nullptr; }).empty());
  CHECK(refusal([](call& c) { c.options.rope = &c.other_rotation; }).empty());
  CHECK(refusal([](call& c) { c.second[0].log_weight = -infinity; }).empty());
  CHECK(refusal([](call& c) { c.second[0].query_shift = -max_rope_position; }).empty());
  CHECK(refusal([](call& c) { c.arguments.lse = {}; }).empty());
  // Different weights in different partitions.
  CHECK(refusal([](call& c) {
          c.first[0].partition = -1;
          c.first[0].log_weight_scale = 0.5;
        }).empty());
  // The weights and the partition of an empty tail say nothing.
  CHECK(refusal([](call& c) { c.sequences[1].tail.log_weight = 2; }).empty());
}

TEST_CASE("check_attend refuses a partition that returns and tails without sense",
          "[attend_checks]") {
  CHECK(refusal([](call& c) {
          c.first[0].partition = 3;
          c.first[1].partition = 2;
        }) == "f: sequence 0, segment 1: partition 2 after partition 3, must not decrease");
  CHECK(refusal([](call& c) { c.sequences[1].tail.k.tokens = -3; }) != "");
  CHECK(refusal([](call& c) {
          c.sequences[1].tail = {};
          c.sequences[1].tail.k.tokens = -3;
        }).find("k has negative size (-3, 0, 0)") != std::string::npos);
  CHECK(refusal([](call& c) {
          c.sequences[1].tail.k.tokens = 0;
          c.sequences[1].tail.v.tokens = 4;
        }).find("v has 4 tokens but k has 0") != std::string::npos);
}

TEST_CASE("check_attend refuses numbers that are infinite in fp32", "[attend_checks]") {
  CHECK(refusal([](call& c) { c.options.scale = 1e40; }).find("options.scale is 1") !=
        std::string::npos);
  CHECK(refusal([](call& c) { c.options.softcap = 1e39; }).find("options.softcap") !=
        std::string::npos);
  CHECK(refusal([](call& c) { c.first[0].score_scale = 1e300; }).find("score_scale") !=
        std::string::npos);
  CHECK(refusal([](call& c) { c.first[0].log_weight_scale = -1e39; }).find("log_weight_scale") !=
        std::string::npos);
  CHECK(refusal([](call& c) { c.first[0].log_weight = 1e39; }).find("log_weight") !=
        std::string::npos);
}

TEST_CASE("check_attend refuses bad tensors in a sentence", "[attend_checks]") {
  CHECK(refusal([](call& c) { c.arguments.q.tokens = -1; }) == "f: q has negative size (-1, 4, 8)");
  CHECK(refusal([](call& c) { c.arguments.q.data = nullptr; }) ==
        "f: q.data is null but its size is (5, 4, 8)");
  CHECK(refusal([](call& c) { c.arguments.o.data = nullptr; }) ==
        "f: o.data is null but its size is (5, 4, 16)");
  CHECK(refusal([](call& c) { c.arguments.o.token_stride = 15; }) ==
        "f: rows of o overlap: head_dim 16, token_stride 15, head_stride 16");
  CHECK(refusal([](call& c) { c.arguments.o.tokens = 4; }) ==
        "f: o is (4, 4) but q has (5, 4) tokens and heads");
  CHECK(refusal([](call& c) { c.arguments.o.heads = 3; }) ==
        "f: o is (5, 3) but q has (5, 4) tokens and heads");
  CHECK(refusal([](call& c) { c.arguments.lse.heads = 3; }) ==
        "f: lse is (5, 3) but there are (5, 4) query tokens and heads");
  CHECK(refusal([](call& c) {
          c.arguments.sink_logits = {c.memory.data(), 3};
        }) == "f: 3 sink_logits for 4 query heads");
  CHECK(refusal([](call& c) { c.options.scale = not_a_number; }) ==
        "f: options.scale is nan, must be finite in the accumulator, also times log2(e)");
  CHECK(refusal([](call& c) { c.options.softcap = -2; }) ==
        "f: options.softcap is -2, must be >= 0 and finite in the accumulator, also times log2(e)");
  CHECK(
      refusal([](call& c) { c.options.softcap = infinity; }) ==
      "f: options.softcap is inf, must be >= 0 and finite in the accumulator, also times log2(e)");
}

TEST_CASE("check_attend refuses bad query ranges in a sentence", "[attend_checks]") {
  CHECK(refusal([](call& c) {
          c.sequences[0].queries = {-1, 2};
        }) == "f: sequence 0 has queries [-1, 2), must follow 0 and end by 5");
  CHECK(refusal([](call& c) {
          c.sequences[0].queries = {2, 1};
        }) == "f: sequence 0 has queries [2, 1), must follow 0 and end by 5");
  CHECK(refusal([](call& c) {
          c.sequences[1].queries = {1, 5};
        }) == "f: sequence 1 has queries [1, 5), must follow 2 and end by 5");
  CHECK(refusal([](call& c) {
          c.sequences[1].queries = {3, 6};
        }) == "f: sequence 1 has queries [3, 6), must follow 2 and end by 5");
}

TEST_CASE("check_attend names the sequence and segment that it refuses", "[attend_checks]") {
  const std::string at = "f: sequence 0, segment 1";
  CHECK(refusal([](call& c) { c.first[1].k.tokens = -2; }) ==
        at + ": k has negative size (-2, 2, 8)");
  CHECK(refusal([](call& c) { c.first[1].k.data = nullptr; }) ==
        at + ": k.data is null but its size is (2, 2, 8)");
  CHECK(refusal([](call& c) { c.first[1].v.data = nullptr; }) ==
        at + ": v.data is null but its size is (2, 2, 16)");
  CHECK(refusal([](call& c) { c.first[1].v.tokens = 3; }) == at + ": v has 3 tokens but k has 2");
  CHECK(refusal([](call& c) { c.first[1].k.heads = 3; }) ==
        at + ": q has 4 heads, not a multiple of the 3 heads of k");
  CHECK(refusal([](call& c) { c.first[1].v.heads = 1; }) == at + ": v has 1 heads but k has 2");
  CHECK(refusal([](call& c) { c.first[1].k.head_dim = 16; }) ==
        at + ": k.head_dim is 16 but q.head_dim is 8");
  CHECK(refusal([](call& c) { c.first[1].v.head_dim = 8; }) ==
        at + ": o.head_dim is 16 but v.head_dim is 8");
  CHECK(refusal([](call& c) { c.first[1].k.heads = c.first[1].v.heads = 4; }) ==
        at + ": k has 4 heads, other segments have 2");
  CHECK(refusal([](call& c) { c.second[0].k.heads = c.second[0].v.heads = 1; }) ==
        "f: sequence 1, segment 0: k has 1 heads, other segments have 2");
  CHECK(refusal([](call& c) { c.sequences[0].tail.k.head_dim = 16; }) ==
        "f: sequence 0, segment 2: k.head_dim is 16 but q.head_dim is 8");
}

TEST_CASE("check_attend refuses bad numbers of a segment", "[attend_checks]") {
  const std::string place = "f: sequence 1, segment 0: ";
  const auto numbers = [&](const std::string& shift, const std::string& score_scale,
                           const std::string& weight_scale, const std::string& weight) {
    return place + "query_shift " + shift + ", score_scale " + score_scale + ", log_weight_scale " +
           weight_scale + " must be finite and log_weight " + weight +
           " finite or -inf, in the accumulator";
  };
  const std::string zero = "0";
  const std::string one = "1";
  CHECK(refusal([](call& c) { c.second[0].query_shift = infinity; }) ==
        numbers("inf", one, one, zero));
  CHECK(refusal([](call& c) { c.second[0].score_scale = not_a_number; }) ==
        numbers(zero, "nan", one, zero));
  CHECK(refusal([](call& c) { c.second[0].log_weight_scale = -infinity; }) ==
        numbers(zero, one, "-inf", zero));
  CHECK(refusal([](call& c) { c.second[0].log_weight = infinity; }) ==
        numbers(zero, one, one, "inf"));
  CHECK(refusal([](call& c) { c.second[0].log_weight = not_a_number; }) ==
        numbers(zero, one, one, "nan"));
  CHECK(refusal([](call& c) { c.second[0].query_shift = 0x1p53; }) ==
        place + "query_shift 9007199254740992 is beyond +-4503599627370496");
}

TEST_CASE("check_attend refuses a shift that no rope can make", "[attend_checks]") {
  const std::string place = "f: sequence 1, segment 0: ";
  CHECK(refusal([](call& c) {
          c.second[0].query_shift = -7;
          c.options.rope = nullptr;
        }) == place + "query_shift is -7 but options.rope is null");
  CHECK(refusal([](call& c) {
          c.second[0].query_shift = -7;
          c.options.rope = &c.other_rotation;
        }) == place + "options.rope is for head_dim 16 but q.head_dim is 8");
}

TEST_CASE("check_attend refuses two weights in one partition", "[attend_checks]") {
  const std::string text = " has two different weights (log_weight_scale, log_weight)";
  CHECK(refusal([](call& c) { c.first[1].log_weight = 2; }) ==
        "f: sequence 0, segment 1: partition 0" + text);
  CHECK(refusal([](call& c) {
          for (auto& segment : c.first) segment.partition = 7;
          c.first[1].log_weight_scale = 0.5;
        }) == "f: sequence 0, segment 1: partition 7" + text);
  CHECK(refusal([](call& c) { c.sequences[0].tail.log_weight = 2; }) ==
        "f: sequence 0, segment 2: partition 0" + text);
}

TEST_CASE("check_attend refuses outputs over anything that is read", "[attend_checks]") {
  CHECK(refusal([](call& c) {
          c.second[0].k.data = c.results.data() + 300;
        }).starts_with("f: sequence 1, segment 0: o and k overlap in memory"));
  CHECK(refusal([](call& c) {
          c.sequences[0].tail.v.data = c.results.data() + 319;
        }).starts_with("f: sequence 0, segment 2: o and v overlap in memory"));
  CHECK(refusal([](call& c) {
          c.first[1].v.data = c.arguments.lse.data;
        }).starts_with("f: sequence 0, segment 1: lse and v overlap in memory"));
  CHECK(refusal([](call& c) {
          c.arguments.q.data = c.results.data() + 1;
        }).starts_with("f: o and q overlap in memory"));
  CHECK(refusal([](call& c) {
          c.arguments.lse.data = c.results.data() + 7;
        }).starts_with("f: o and lse overlap in memory"));
}

TEST_CASE("check_attend refuses numbers that no axis or accumulator holds", "[attend_checks]") {
  CHECK(refusal([](call& c) { c.second[0].k.tokens = c.second[0].v.tokens = index_t{1} << 62; }) ==
        "f: sequence 1, segment 0: k has 4611686018427387904 tokens, at most 2147483648 are "
        "allowed");
  CHECK(refusal([](call& c) {
          c.arguments.q.tokens = index_t{1} << 62;
        }).starts_with("f: q has 4611686018427387904 tokens, at most 2147483648"));
  CHECK(refusal([](call& c) {
          c.options.scale = 1e30;
          c.first[0].score_scale = 1e10;
        }) ==
        "f: sequence 0, segment 0: score_scale 1e+10 times scale 1e+30 is beyond the "
        "accumulator");
  CHECK(refusal([](call& c) {
          c.options.softcap = 2;
          c.options.scale = 1e30;
          c.first[0].score_scale = 1.5e38;
        }) ==
        "f: sequence 0, segment 0: score_scale 1.5e+38 times softcap 2 is beyond the "
        "accumulator");
  CHECK(refusal([](call& c) {
          c.first[0].k.token_stride = 0;
        }).starts_with("f: sequence 0, segment 0: k has strides 0 (tokens) and 8 (heads)"));
}
