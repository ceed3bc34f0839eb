// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_arguments.hpp>

#include "support/attention_case.hpp"
#include "support/catch.hpp"
#include "support/naive_attention.hpp"
#include "support/unit_roundoff.hpp"

/// \file
/// Needs no nvcc: the tests of this room are compiled by the host compiler, the library's CUDA
/// headers once, in the .cu files beside them.

namespace blockattn_test {

/// True on a machine with a CUDA device of compute capability 8.0 or more.
bool has_cuda_device();

/// For the first line of a test that needs a device.
inline bool skips_without_device() {
  if (has_cuda_device()) return false;
  WARN("skipped: needs a CUDA device of compute capability 8.0 or more");
  return true;
}

/// The GPU as a backend of the shared tests. Tensors go to the device with all that lies between
/// their rows, at addresses that are as badly aligned as the host's, amid margins of NaN; what was
/// written comes back. Throws std::runtime_error when a margin or an input has changed, or CUDA
/// fails. The tiles are those of the device, the fine ones when a case asks for an odd number of
/// rows. Defined for q, k and v of bfloat16, float16 or float, and some mixtures.
struct cuda_backend {
  bool deterministic = false;  ///< of backward

  template <class Q, class K, class V, class O>
  void forward(const forward_arguments<Q, K, V, O>& arguments,
               const head_masks& masks,
               const attention_options& options = {}) const;

  /// The same of `cuda::backward`, for types that are all equal, and gradients that are float.
  template <class Q, class... Types>
  void backward(const backward_arguments<Q, Types...>& arguments,
                const head_masks& masks,
                const attention_options& options = {}) const;

  /// PTX says of ex2.approx.ftz.f32 that its relative error stays below 2^-22, not that it is
  /// centred; measured in lse: -1e-7 on average.
  static constexpr double exponential_bias = 0x1p-22;

  /// Relative rounding error of the scale, which kernels hold in fp32.
  template <class T>
  static constexpr double scale_error = unit_roundoff<float>();

  /// Rounding of softmax weights, and of their gradients, in products. fp32 is multiplied as three
  /// products of TF32: both factors are held to 2^-23 and the product of two rests of at most 2^-11
  /// each is left out, so that a product is within 2^-23 + 2^-23 + 2^-22 = 2^-21 of its value.
  /// (Scores need no allowance: 2^-21 is the 8 u of a sum's error, and errors of 2^-21 are rare.)
  template <class V>
  static constexpr double weight_roundoff = format_of<V> == storage_format::fp32
                                                ? 0x1p-21
                                                : unit_roundoff<V>();

  /// The same bound for S and P as a whole: that of a naive implementation that rounds them.
  template <class T>
  using yardstick_rounding =
      std::conditional_t<format_of<T> == storage_format::fp32, round_to_bits<21>, round_to<T>>;

  /// Tensor cores cut off what does not fit into the 24 bits of a sum of products: up to 2^-23 of
  /// it, always towards 0. In 16 bits that is nothing beside the rounding of o.
  template <class T>
  static constexpr double product_bias = format_of<T> == storage_format::fp32 ? 0x1p-23 : 0;
};

/// `cuda::forward` where it refuses a call, else nothing: the plan is on no device. Defined for
/// bfloat16 and float.
template <class T>
void refused_forward(const forward_arguments<T>& arguments,
                     const plan_set& plans,
                     index_t query_heads,
                     const attention_options& options = {});

/// The same of `cuda::backward`.
template <class T>
void refused_backward(const backward_arguments<T>& arguments,
                      const plan_set& plans,
                      index_t query_heads,
                      const attention_options& options = {});

/// `cuda::upload_plan`, where it refuses its memory. Nothing may be copied: the memory is the
/// host's.
void refused_upload(const plan_set& plans,
                    index_t query_heads,
                    std::span<std::byte> device_memory,
                    std::span<std::byte> staging);

/// `cuda::backward_workspace_size` in bf16, and `cuda::forward_workspace_size`.
index_t backward_workspace_of(const plan_set& plans,
                              index_t query_heads,
                              index_t head_dim,
                              index_t value_dim,
                              bool deterministic);
index_t forward_workspace_of(const plan_set& plans,
                             index_t query_heads,
                             index_t head_dim,
                             index_t value_dim);

/// `cuda::device_plan_size`.
index_t device_plan_size(const plan_set& plans, index_t query_heads);

/// `cuda::tile_shape_for`.
tile_shape device_tile_shape(index_t head_dim,
                             index_t value_dim,
                             storage_format format = storage_format::bf16);

}  // namespace blockattn_test
