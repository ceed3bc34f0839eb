// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <blockattn/cuda/exponential_sum.cuh>
#include <blockattn/distill/distillation_options.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A matrix of logits or of their gradients on the device, of a type that its kernel knows.
struct logits_rows {
  void* data;  ///< null: absent
  index_t token_stride;

  template <class T>
  __device__ __forceinline__ T* row(index_t token) const {
    return data != nullptr ? static_cast<T*>(data) + token * token_stride : nullptr;
  }
};

/// Which tokens of a batch count, and how much.
struct device_weights {
  const float* weights;         ///< null: all 1
  const std::uint8_t* ignored;  ///< null: none

  __device__ __forceinline__ double of(index_t token) const {
    if (ignored != nullptr && ignored[token] != 0) return 0;
    return weights != nullptr ? static_cast<double>(weights[token]) : 1.0;
  }
};

struct distillation_parameters {
  logits_rows teacher, student, d_student;
  device_weights weights;
  const std::int32_t* labels;      ///< null: labels weigh nothing
  const std::int32_t* ids;         ///< (tokens, k), of a top-k teacher
  const float* log_probabilities;  ///< (tokens, k)
  const float* rest_mass;          ///< null: it follows from the probabilities
  float* token_losses;             ///< null: not wanted
  double* weighted_losses;         ///< (tokens) w_t l_t
  double given_total_weight;       ///< 0: `total_weight` holds it
  double* total_weight;            ///< sum of the weights
  int vocabulary;
  int k;
  int kept;  ///< tiles of a row that stay in shared memory
  distillation_options options;
  float teacher_share;        ///< that of the options
  exponent_scale scale;       ///< at the options' temperature, or at 1 where only labels weigh
  exponent_scale unit_scale;  ///< at temperature 1
  double divergence_weight;   ///< of the divergence in a token's loss
  double gradient_weight;     ///< of its derivative by the scaled logits in a token's gradient
  /// The labels' softmax is not that of the divergence: it has another temperature.
  bool labels_apart;
};

/// What a cta works on.
struct row_context {
  const distillation_parameters& p;
  index_t token;
  std::uint32_t* bitmap;  ///< shared memory for a bit of each token, where the teacher is top-k
};

/// What the terms of one token's loss count in its gradient.
struct gradient_weights {
  double divergence;  ///< by the scaled logits
  double label;       ///< of the probabilities that share the divergence's softmax
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
