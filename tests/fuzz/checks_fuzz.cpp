// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Views of wild sizes and strides: the checks refuse or accept them without undefined behaviour,
// and views of one small buffer that are accepted really do not overlap.

#include <blockattn/attention/attend_checks.hpp>
#include <blockattn/attention/backward_checks.hpp>
#include <blockattn/attention/merge_backward_arguments.hpp>

#include <set>

#include "fuzz/fuzz_input.hpp"

using namespace blockattn_test;

namespace {

float buffer[4096];

template <class T>
heads_view<T> wild_view(fuzz_input& input) {
  return {.data = input.small(0, 7) == 0 ? nullptr : buffer + input.byte(),
          .tokens = input.wild(),
          .heads = input.wild(),
          .head_dim = input.wild(),
          .token_stride = input.wild(),
          .head_stride = input.wild(),
          .broadcast = input.small(0, 3) == 0};
}

template <class T>
heads_view<T> small_view(fuzz_input& input) {
  return {.data = buffer + 1000 + input.byte(),
          .tokens = input.small(0, 4),
          .heads = input.small(0, 4),
          .head_dim = input.small(0, 9),
          .token_stride = input.small(0, 60) - 30,
          .head_stride = input.small(0, 60) - 30};
}

template <class Call>
bool accepted(const Call& call) {
  try {
    call();
    return true;
  } catch (const blockattn::error&) {
    return false;
  }
}

void check_wild_calls(fuzz_input& input) {
  const auto q = wild_view<const float>(input), k = wild_view<const float>(input);
  const auto v = wild_view<const float>(input);
  const auto o = wild_view<float>(input);
  const lse_view<float> lse = {buffer + 300, input.wild(), input.wild(), input.wild(),
                               input.wild()};
  const attention_options options = {.scale = static_cast<double>(input.wild()),
                                     .softcap = static_cast<double>(input.wild())};
  accepted([&] { detail::check_forward("f", forward_arguments<float>{q, k, v, o, lse}, options); });
  accepted([&] {
    detail::check_backward("f",
                           backward_arguments<float>{.q = q,
                                                     .k = k,
                                                     .v = v,
                                                     .o = o,
                                                     .lse = lse,
                                                     .d_o = o,
                                                     .d_q = wild_view<float>(input),
                                                     .d_k = wild_view<float>(input),
                                                     .d_v = wild_view<float>(input)},
                           options);
  });
  const key_segment<float> segment = {.k = k, .v = v};
  const attend_sequence<float> sequence = {.queries = {input.wild(), input.wild()},
                                           .segments = {&segment, 1}};
  accepted([&] {
    detail::check_attend(
        "f", attend_arguments<float>{.q = q, .o = o, .lse = lse, .sequences = {&sequence, 1}}, {});
  });
}

std::set<const float*> elements(const heads_view<const float>& view) {
  std::set<const float*> all;
  for (index_t token = 0; token < view.tokens; ++token) {
    for (index_t head = 0; head < view.heads; ++head) {
      for (index_t i = 0; i < view.head_dim; ++i) all.insert(view.row(token, head) + i);
    }
  }
  return all;
}

void check_small_views(fuzz_input& input) {
  const auto a = small_view<float>(input);
  const auto b = small_view<const float>(input);
  const bool apart = accepted([&] {
    detail::check_apart("f", {"a", detail::footprint_of(a)}, {"b", detail::footprint_of(b)});
  });
  const auto in_a = elements(a);
  for (const float* element : elements(b)) {
    fuzz_require(!apart || !in_a.contains(element), "views that share an element were accepted");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  fuzz_input input(bytes, size);
  if (input.small(0, 1) == 0) {
    check_wild_calls(input);
  } else {
    check_small_views(input);
  }
  return 0;
}
