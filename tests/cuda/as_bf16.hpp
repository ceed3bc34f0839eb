// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/arguments.hpp>
#include <blockattn/attention/backward_arguments.hpp>

/// \file
/// The same arguments over memory that is called bf16: for calls that are refused and never read.

namespace blockattn_test {

using namespace blockattn;

inline heads_view<const bfloat16> as_bf16(const heads_view<const float>& view) {
  return {reinterpret_cast<const bfloat16*>(view.data),
          view.tokens,
          view.heads,
          view.head_dim,
          view.token_stride,
          view.head_stride,
          view.broadcast};
}
inline heads_view<bfloat16> as_bf16(const heads_view<float>& view) {
  return {reinterpret_cast<bfloat16*>(view.data),
          view.tokens,
          view.heads,
          view.head_dim,
          view.token_stride,
          view.head_stride,
          view.broadcast};
}

inline forward_arguments<bfloat16> as_bf16(const forward_arguments<float>& a) {
  return {.q = as_bf16(a.q),
          .k = as_bf16(a.k),
          .v = as_bf16(a.v),
          .o = as_bf16(a.o),
          .lse = a.lse,
          .sink_logits = a.sink_logits};
}

inline backward_arguments<bfloat16> as_bf16(const backward_arguments<float>& a) {
  return {.q = as_bf16(a.q),
          .k = as_bf16(a.k),
          .v = as_bf16(a.v),
          .o = as_bf16(a.o),
          .lse = a.lse,
          .d_o = as_bf16(a.d_o),
          .d_q = as_bf16(a.d_q),
          .d_k = as_bf16(a.d_k),
          .d_v = as_bf16(a.d_v),
          .d_lse = a.d_lse,
          .sink_logits = a.sink_logits,
          .d_sink_logits = a.d_sink_logits};
}

}  // namespace blockattn_test
