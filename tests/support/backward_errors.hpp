// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_arguments.hpp>

#include "support/forward_errors.hpp"

namespace blockattn_test {

/// One way to spoil a valid backward call, and the sentence that every backend answers, after its
/// name.
struct backward_error {
  std::string sentence;
  std::function<void(backward_arguments<float>&, attention_options&)> spoil;
};

/// A valid call of the sizes of valid_call. Gradients start as -1.
class valid_backward_call {
 public:
  static constexpr index_t query_tokens = valid_call::query_tokens;
  static constexpr index_t key_tokens = valid_call::key_tokens;

  valid_backward_call()
      : q_(5 * 4 * 16, 1),
        k_(7 * 2 * 16, 1),
        v_(7 * 2 * 24, 1),
        o_(5 * 4 * 24, 1),
        d_o_(o_),
        lse_(5 * 4, 3),
        d_lse_(lse_),
        sinks_(4, 0.5F),
        d_q_(q_.size(), -1),
        d_k_(k_.size(), -1),
        d_v_(v_.size(), -1),
        d_sinks_(4, -1) {}

  backward_arguments<float> arguments() {
    return {.q = token_major<const float>(q_.data(), query_tokens, 4, 16),
            .k = token_major<const float>(k_.data(), key_tokens, 2, 16),
            .v = token_major<const float>(v_.data(), key_tokens, 2, 24),
            .o = token_major<const float>(o_.data(), query_tokens, 4, 24),
            .lse = token_major_lse<const float>(lse_.data(), query_tokens, 4),
            .d_o = token_major<const float>(d_o_.data(), query_tokens, 4, 24),
            .d_q = token_major(d_q_.data(), query_tokens, 4, 16),
            .d_k = token_major(d_k_.data(), key_tokens, 2, 16),
            .d_v = token_major(d_v_.data(), key_tokens, 2, 24),
            .d_lse = token_major_lse<const float>(d_lse_.data(), query_tokens, 4),
            .sink_logits = sinks_,
            .d_sink_logits = d_sinks_};
  }

  bool outputs_untouched() const {
    for (const auto* gradient : {&d_q_, &d_k_, &d_v_, &d_sinks_}) {
      if (std::count(gradient->begin(), gradient->end(), -1.0F) != std::ssize(*gradient))
        return false;
    }
    return true;
  }

 private:
  std::vector<float> q_, k_, v_, o_, d_o_, lse_, d_lse_, sinks_;
  std::vector<float> d_q_, d_k_, d_v_, d_sinks_;
};

/// What `blockattn/attention/backward_checks.hpp` refuses, each by its own sentence.
inline std::vector<backward_error> backward_errors() {
  using arguments = backward_arguments<float>;
  using options = attention_options;
  static constexpr double infinity = std::numeric_limits<double>::infinity();
  static constexpr float nan_sinks[] = {0, 0, std::numeric_limits<float>::quiet_NaN(), 0};
  return {
      {"q has negative size (-1, 4, 16)", [](arguments& a, options&) { a.q.tokens = -1; }},
      {"k.data is null but its size is (7, 2, 16)",
       [](arguments& a, options&) { a.k.data = nullptr; }},
      {"v.data is null but its size is (7, 2, 24)",
       [](arguments& a, options&) { a.v.data = nullptr; }},
      {"o.data is null but its size is (5, 4, 24)",
       [](arguments& a, options&) { a.o.data = nullptr; }},
      {"d_o.data is null but its size is (5, 4, 24)",
       [](arguments& a, options&) { a.d_o.data = nullptr; }},
      {"q has 4 heads, not a multiple of the 3 heads of k",
       [](arguments& a, options&) { a.k.heads = a.v.heads = 3; }},
      {"o has 4 tokens but q has 5", [](arguments& a, options&) { a.o.tokens = 4; }},
      {"d_o is (5, 4, 16) but o is (5, 4, 24)",
       [](arguments& a, options&) { a.d_o.head_dim = 16; }},
      {"lse.data is null; backward needs the lse that forward returned",
       [](arguments& a, options&) { a.lse = {}; }},
      {"lse is (4, 4) but there are (5, 4) query tokens and heads",
       [](arguments& a, options&) { a.lse.tokens = 4; }},
      {"d_lse is (5, 2) but there are (5, 4) query tokens and heads",
       [](arguments& a, options&) { a.d_lse.heads = 2; }},
      {"3 sink_logits for 4 query heads",
       [](arguments& a, options&) { a.sink_logits = a.sink_logits.first(3); }},
      {"sink_logits[2] is nan, must be finite or -inf",
       [](arguments& a, options&) { a.sink_logits = nan_sinks; }},
      {"3 d_sink_logits for 4 sink_logits",
       [](arguments& a, options&) { a.d_sink_logits = a.d_sink_logits.first(3); }},
      {"4 d_sink_logits for 0 sink_logits", [](arguments& a, options&) { a.sink_logits = {}; }},
      {"d_q is (4, 4, 16) but q is (5, 4, 16)", [](arguments& a, options&) { a.d_q.tokens = 4; }},
      {"d_k is (7, 4, 16) but k is (7, 2, 16)", [](arguments& a, options&) { a.d_k.heads = 4; }},
      {"d_v is (7, 2, 16) but v is (7, 2, 24)",
       [](arguments& a, options&) { a.d_v.head_dim = 16; }},
      {"d_q.data is null but its size is (5, 4, 16)",
       [](arguments& a, options&) { a.d_q.data = nullptr; }},
      {"rows of d_q overlap: head_dim 16, token_stride 64, head_stride 15",
       [](arguments& a, options&) { a.d_q.head_stride = 15; }},
      {"rows of d_k overlap: head_dim 16, token_stride 0, head_stride 16",
       [](arguments& a, options&) { a.d_k.token_stride = 0; }},
      {"rows of d_v overlap: head_dim 24, token_stride 24, head_stride 24",
       [](arguments& a, options&) { a.d_v.token_stride = 24; }},
      {"d_q and lse overlap in memory",
       [](arguments& a, options&) { a.lse.data = a.d_q.data + 5; }},
      {"d_k and d_lse overlap in memory",
       [](arguments& a, options&) {
         a.d_lse = {a.d_k.data, 5, 4, 4, 1};
       }},
      {"d_sink_logits and sink_logits overlap in memory",
       [](arguments& a, options&) { a.sink_logits = a.d_sink_logits; }},
      {"d_k and k overlap in memory", [](arguments& a, options&) { a.k.data = a.d_k.data + 1; }},
      {"lse has strides 0 (tokens) and 1 (heads) for 5 tokens and 4 heads",
       [](arguments& a, options&) { a.lse.token_stride = 0; }},
      {"d_q and q overlap in memory", [](arguments& a, options&) { a.q.data = a.d_q.data; }},
      {"d_q and k overlap in memory", [](arguments& a, options&) { a.k.data = a.d_q.data; }},
      {"d_k and v overlap in memory", [](arguments& a, options&) { a.v.data = a.d_k.data; }},
      {"d_v and o overlap in memory", [](arguments& a, options&) { a.o.data = a.d_v.data; }},
      {"d_q and d_o overlap in memory", [](arguments& a, options&) { a.d_o.data = a.d_q.data; }},
      {"d_q and d_k overlap in memory", [](arguments& a, options&) { a.d_q.data = a.d_k.data; }},
      {"d_q and d_v overlap in memory", [](arguments& a, options&) { a.d_q.data = a.d_v.data; }},
      {"d_k and d_v overlap in memory", [](arguments& a, options&) { a.d_v.data = a.d_k.data; }},
      {"options.scale is inf, must be finite in the accumulator",
       [](arguments&, options& o) { o.scale = infinity; }},
      {"options.softcap is -1, must be >= 0 and finite in the accumulator",
       [](arguments&, options& o) { o.softcap = -1; }},
      {"options.softcap is below the smallest normal number of the accumulator, 2^-126",
       [](arguments&, options& o) { o.softcap = 1e-39; }},
      {"options.scale / options.softcap is 1000 / 1e-36, must be finite in the "
       "accumulator",
       [](arguments&, options& o) { o = {.scale = 1000, .softcap = 1e-36}; }},
  };
}

/// `call(arguments, options)` refuses every spoiled call in its sentence, writes nothing, and takes
/// the valid one.
template <class Call>
void check_backward_errors(const std::string& function, const Call& call) {
  for (const backward_error& bad : backward_errors()) {
    valid_backward_call valid;
    backward_arguments<float> arguments = valid.arguments();
    attention_options options;
    bad.spoil(arguments, options);
    const std::string expected = function + ": " + bad.sentence;
    CAPTURE(expected);
    CHECK(sentence_of([&] { call(arguments, options); }).starts_with(expected));
    CHECK(valid.outputs_untouched());
  }
  valid_backward_call valid;
  CHECK(sentence_of([&] { call(valid.arguments(), attention_options{}); }) == "no error");
}

}  // namespace blockattn_test
