// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/attention/arguments.hpp>
#include <blockattn/core/error.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace blockattn_test {

using namespace blockattn;

/// One way to spoil a valid call, and the sentence that every backend answers, after its name.
struct forward_error {
  std::string sentence;
  std::function<void(forward_arguments<float>&, attention_options&)> spoil;
};

/// A valid call: 5 queries, 7 keys, 4 query heads, 2 kv heads, head_dim 16, value_dim 24. Outputs
/// start as -1.
class valid_call {
 public:
  static constexpr index_t query_tokens = 5;
  static constexpr index_t key_tokens = 7;

  valid_call() : q_(5 * 4 * 16, 1), k_(7 * 2 * 16, 1), v_(7 * 2 * 24, 1), o_(5 * 4 * 24, -1) {}

  forward_arguments<float> arguments() {
    return {.q = token_major<const float>(q_.data(), query_tokens, 4, 16),
            .k = token_major<const float>(k_.data(), key_tokens, 2, 16),
            .v = token_major<const float>(v_.data(), key_tokens, 2, 24),
            .o = token_major(o_.data(), query_tokens, 4, 24),
            .lse = token_major_lse(lse_.data(), query_tokens, 4),
            .sink_logits = sinks_};
  }

  bool outputs_untouched() const {
    return std::count(o_.begin(), o_.end(), -1.0F) == std::ssize(o_) &&
           std::count(lse_.begin(), lse_.end(), -1.0F) == std::ssize(lse_);
  }

 private:
  std::vector<float> q_, k_, v_, o_;
  std::vector<float> lse_ = std::vector<float>(5 * 4, -1);
  std::vector<float> sinks_ = std::vector<float>(4, 0.5F);
};

/// What `blockattn/attention/checks.hpp` refuses, each by its own sentence.
inline std::vector<forward_error> forward_errors() {
  using arguments = forward_arguments<float>;
  using options = attention_options;
  static constexpr double infinity = std::numeric_limits<double>::infinity();
  static constexpr float nan_sinks[] = {0, 0, std::numeric_limits<float>::quiet_NaN(), 0};
  static constexpr float infinite_sinks[] = {0, 0, std::numeric_limits<float>::infinity(), 0};
  return {
      {"q has negative size (-1, 4, 16)", [](arguments& a, options&) { a.q.tokens = -1; }},
      {"q has negative size (5, -4, 16)", [](arguments& a, options&) { a.q.heads = -4; }},
      {"k has negative size (7, 2, -16)", [](arguments& a, options&) { a.k.head_dim = -16; }},
      {"v has negative size (-7, 2, 24)", [](arguments& a, options&) { a.v.tokens = -7; }},
      {"o has negative size (5, -1, 24)", [](arguments& a, options&) { a.o.heads = -1; }},
      {"q.data is null but its size is (5, 4, 16)",
       [](arguments& a, options&) { a.q.data = nullptr; }},
      {"k.data is null but its size is (7, 2, 16)",
       [](arguments& a, options&) { a.k.data = nullptr; }},
      {"v.data is null but its size is (7, 2, 24)",
       [](arguments& a, options&) { a.v.data = nullptr; }},
      {"o.data is null but its size is (5, 4, 24)",
       [](arguments& a, options&) { a.o.data = nullptr; }},
      {"rows of o overlap: head_dim 24, token_stride 96, head_stride 23",
       [](arguments& a, options&) { a.o.head_stride = 23; }},
      {"rows of o overlap: head_dim 24, token_stride 0, head_stride 24",
       [](arguments& a, options&) { a.o.token_stride = 0; }},
      {"rows of o overlap: head_dim 24, token_stride -95, head_stride 24",
       [](arguments& a, options&) { a.o.token_stride = -95; }},
      {"rows of o overlap: head_dim 24, token_stride 24, head_stride 24",
       [](arguments& a, options&) { a.o.token_stride = 24; }},
      {"q has 4 heads, not a multiple of the 3 heads of k",
       [](arguments& a, options&) { a.k.heads = a.v.heads = 3; }},
      {"q has 4 heads, not a multiple of the 0 heads of k",
       [](arguments& a, options&) { a.k.heads = a.v.heads = 0; }},
      {"v has 1 heads but k has 2", [](arguments& a, options&) { a.v.heads = 1; }},
      {"o has 2 heads but q has 4", [](arguments& a, options&) { a.o.heads = 2; }},
      {"k.head_dim is 8 but q.head_dim is 16", [](arguments& a, options&) { a.k.head_dim = 8; }},
      {"o.head_dim is 16 but v.head_dim is 24", [](arguments& a, options&) { a.o.head_dim = 16; }},
      {"v has 6 tokens but k has 7", [](arguments& a, options&) { a.v.tokens = 6; }},
      {"o has 4 tokens but q has 5", [](arguments& a, options&) { a.o.tokens = 4; }},
      {"lse is (4, 4) but there are (5, 4) query tokens and heads",
       [](arguments& a, options&) { a.lse.tokens = 4; }},
      {"lse is (5, 2) but there are (5, 4) query tokens and heads",
       [](arguments& a, options&) { a.lse.heads = 2; }},
      {"entries of lse overlap: token_stride 0, head_stride 1",
       [](arguments& a, options&) { a.lse.token_stride = 0; }},
      {"entries of lse overlap: token_stride 1, head_stride 1",
       [](arguments& a, options&) { a.lse.token_stride = 1; }},
      {"3 sink_logits for 4 query heads",
       [](arguments& a, options&) { a.sink_logits = a.sink_logits.first(3); }},
      {"sink_logits[2] is nan, must be finite or -inf",
       [](arguments& a, options&) { a.sink_logits = nan_sinks; }},
      {"sink_logits[2] is inf, must be finite or -inf",
       [](arguments& a, options&) { a.sink_logits = infinite_sinks; }},
      {"options.scale is inf, must be finite in the accumulator",
       [](arguments&, options& o) { o.scale = infinity; }},
      {"options.scale is nan, must be finite in the accumulator",
       [](arguments&, options& o) { o.scale = std::nan(""); }},
      {"options.scale is -1e+39, must be finite in the accumulator",
       [](arguments&, options& o) { o.scale = -1e39; }},
      {"options.softcap is -1, must be >= 0 and finite in the accumulator",
       [](arguments&, options& o) { o.softcap = -1; }},
      {"options.softcap is below the smallest normal number of the accumulator, 2^-126",
       [](arguments&, options& o) { o.softcap = 1e-39; }},
      {"options.scale / options.softcap is 1000 / 1e-36, must be finite in the "
       "accumulator",
       [](arguments&, options& o) { o = {.scale = 1000, .softcap = 1e-36}; }},
      {"options.softcap is inf, must be >= 0 and finite in the accumulator",
       [](arguments&, options& o) { o.softcap = infinity; }},
      {"options.softcap is nan, must be >= 0 and finite in the accumulator",
       [](arguments&, options& o) { o.softcap = std::nan(""); }},
      {"o and q overlap in memory", [](arguments& a, options&) { a.q.data = a.o.data + 64; }},
      {"o and lse overlap in memory", [](arguments& a, options&) { a.lse.data = a.o.data + 3; }},
      {"lse and v overlap in memory", [](arguments& a, options&) { a.v.data = a.lse.data; }},
      {"q has strides 0 (tokens) and 16 (heads) for 5 tokens and 4 heads; set them",
       [](arguments& a, options&) { a.q.token_stride = 0; }},
      {"k has strides 32 (tokens) and 0 (heads) for 7 tokens and 2 heads; set them",
       [](arguments& a, options&) { a.k.head_stride = 0; }},
      {"rows of o overlap: head_dim 24, token_stride 0",
       [](arguments& a, options&) {
         a.o.token_stride = 0;
         a.o.broadcast = true;
       }},
      {"v spans more than 2^62 bytes: size (7, 2, 24), strides -9223372036854775808",
       [](arguments& a, options&) { a.v.token_stride = std::numeric_limits<index_t>::min(); }},
      {"q spans more than 2^62 bytes",
       [](arguments& a, options&) { a.q.head_stride = index_t{1} << 61; }},
      {"options.scale is 3e+38, must be finite in the accumulator, also times log2(e)",
       [](arguments&, options& o) { o.scale = 3e38; }},
      {"o and k overlap in memory", [](arguments& a, options&) { a.k.data = a.o.data; }},
      {"o and v overlap in memory", [](arguments& a, options&) { a.v.data = a.o.data; }},
  };
}

/// The sentence that `call()` throws; "no error" when it returns.
template <class Call>
std::string sentence_of(const Call& call) {
  try {
    call();
  } catch (const error& e) {
    return e.what();
  }
  return "no error";
}

/// Every spoiled call of `call(arguments, options)` is refused by its sentence and writes nothing;
/// the unspoiled one is not refused.
template <class Call>
void check_forward_errors(const std::string& function, const Call& call) {
  for (const forward_error& expected : forward_errors()) {
    valid_call valid;
    forward_arguments<float> arguments = valid.arguments();
    attention_options options;
    expected.spoil(arguments, options);
    const std::string sentence = function + ": " + expected.sentence;
    CAPTURE(sentence);
    CHECK(sentence_of([&] { call(arguments, options); }).starts_with(sentence));
    CHECK(valid.outputs_untouched());
  }
  valid_call valid;
  CHECK(sentence_of([&] { call(valid.arguments(), attention_options{}); }) == "no error");
}

}  // namespace blockattn_test
