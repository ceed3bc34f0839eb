// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/arguments.hpp>
#include <blockattn/attention/backward_arguments.hpp>
#include <cstddef>
#include <functional>
#include <memory>
#include <type_traits>

#include "block_mask.hpp"

/// \file
/// What the bindings, which know torch, tell the kernels, which do not: neither pays for the
/// other's headers, and nvcc never sees those of torch.

struct CUstream_st;  // cudaStream_t points to it

namespace block_attention {

/// A tensor whose storage type is known when the program runs.
using any_tensor = ba::heads_view<void>;

/// Memory for one call, aligned to workspace_alignment, from torch's allocators.
using memory = std::shared_ptr<std::byte>;
using allocator = std::function<memory(ba::index_t bytes)>;

/// The tensors of a call. The shapes are those of forward_arguments and backward_arguments; lse,
/// sink logits and their gradients are contiguous fp32, fp64 beside fp64 tensors.
struct attention_call {
  ba::storage_format format;  ///< of q, k, v, o and their gradients
  ba::attention_options options;
  any_tensor q, k, v, o;
  void* lse = nullptr;
  void* sink_logits = nullptr;  ///< null = none

  any_tensor d_o, d_q, d_k, d_v;  ///< backward alone has these
  void* d_lse = nullptr;          ///< null = none
  void* d_sink_logits = nullptr;  ///< null = not wanted
  bool deterministic = false;     ///< the same bits each time, which on the CPU holds anyway
};

void cpu_forward(const attention_call& call, const block_mask& mask, const allocator& allocate);
void cpu_backward(const attention_call& call, const block_mask& mask, const allocator& allocate);

/// A device and a stream on it, which is current.
struct cuda_place {
  int device = 0;
  CUstream_st* stream = nullptr;
};
void cuda_forward(const attention_call& call,
                  const block_mask& mask,
                  const allocator& allocate,
                  const cuda_place& place);
void cuda_backward(const attention_call& call,
                   const block_mask& mask,
                   const allocator& allocate,
                   const cuda_place& place);

/// Torch always knows its strides: those of 0, as expand() makes them, are meant.
template <class T>
ba::heads_view<T> typed(const any_tensor& t) {
  return {static_cast<T*>(t.data), t.tokens,      t.heads,           t.head_dim,
          t.token_stride,          t.head_stride, std::is_const_v<T>};
}

template <class T>
std::span<T> per_head(const attention_call& call, void* values) {
  return {static_cast<T*>(values), values == nullptr ? 0 : static_cast<std::size_t>(call.q.heads)};
}

template <class T>
ba::forward_arguments<T> forward_arguments_of(const attention_call& call) {
  using accumulator = typename ba::forward_arguments<T>::accumulator_type;
  return {
      .q = typed<const T>(call.q),
      .k = typed<const T>(call.k),
      .v = typed<const T>(call.v),
      .o = typed<T>(call.o),
      .lse = ba::token_major_lse(static_cast<accumulator*>(call.lse), call.q.tokens, call.q.heads),
      .sink_logits = per_head<const accumulator>(call, call.sink_logits)};
}

template <class T>
ba::backward_arguments<T> backward_arguments_of(const attention_call& call) {
  using accumulator = typename ba::backward_arguments<T>::accumulator_type;
  const auto lse_of = [&call](void* values) {
    return ba::token_major_lse(static_cast<const accumulator*>(values), call.q.tokens,
                               call.q.heads);
  };
  return {.q = typed<const T>(call.q),
          .k = typed<const T>(call.k),
          .v = typed<const T>(call.v),
          .o = typed<const T>(call.o),
          .lse = lse_of(call.lse),
          .d_o = typed<const T>(call.d_o),
          .d_q = typed<T>(call.d_q),
          .d_k = typed<T>(call.d_k),
          .d_v = typed<T>(call.d_v),
          .d_lse = lse_of(call.d_lse),
          .sink_logits = per_head<const accumulator>(call, call.sink_logits),
          .d_sink_logits = per_head<accumulator>(call, call.d_sink_logits)};
}

}  // namespace block_attention
