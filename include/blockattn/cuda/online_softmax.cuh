// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/output_rows.cuh>
#include <cmath>
#include <limits>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// How products become scores in base 2: factor * x, or softcap_log2 * tanh(softcap_factor * x).
struct score_transform {
  float factor;          ///< |scale| log2(e); 1 with a softcap; positive
  float softcap_log2;    ///< softcap log2(e); 0 = none
  float softcap_factor;  ///< |scale| / softcap
};

/// What becomes of queries before they are multiplied: kernels want a positive scale.
enum class query_change { none, negate, zero };

/// How a call's scores are formed from products of its queries, changed, and its keys.
struct score_form {
  score_transform transform;
  query_change change;
};

/// score_scale * softcap(scale * x).
inline score_form score_form_of(double scale, double softcap, double score_scale = 1) {
  constexpr double log2_e = 1.4426950408889634;
  const double before_cap = std::abs(softcap > 0 ? scale : scale * score_scale);
  const double after_cap = softcap > 0 ? softcap * std::abs(score_scale) : 1;
  // A factor that fp32 holds as 0 would meet -inf in hidden pairs: the queries become 0 instead.
  constexpr float least = std::numeric_limits<float>::min();
  if (static_cast<float>(before_cap) < least || static_cast<float>(after_cap) < least) {
    return {{1.0F, 0.0F, 0.0F}, query_change::zero};
  }
  const query_change change =
      (scale < 0) != (score_scale < 0) ? query_change::negate : query_change::none;
  if (softcap == 0) return {{static_cast<float>(before_cap * log2_e), 0.0F, 0.0F}, change};
  return {{1.0F, static_cast<float>(after_cap * log2_e), static_cast<float>(before_cap / softcap)},
          change};
}

/// The running maxima and sums of the rows that a warp holds in accumulators of 16 rows each. Lane
/// l holds two rows of each, together with the other three lanes of its quad.
template <int RowTiles>
struct online_softmax {
  float max_log2[2 * RowTiles];  ///< no_maximum at first
  float sum[2 * RowTiles];       ///< over this lane's columns

  __device__ __forceinline__ online_softmax() {
#pragma unroll
    for (int half = 0; half < 2 * RowTiles; ++half) {
      max_log2[half] = no_maximum;
      sum[half] = 0;
    }
  }

  /// Applies the softcap, if there is one.
  template <int KeyTiles>
  __device__ __forceinline__ void prepare(const score_transform& transform,
                                          float (&scores)[RowTiles][KeyTiles][4]) const {
    if (transform.softcap_log2 == 0) return;
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < KeyTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& score = scores[r][n][i];
          score = transform.softcap_log2 * tanhf(transform.softcap_factor * score);
        }
      }
    }
  }

  /// Raises the maxima to those of new scores and scales sums and values to match. A maximum stays
  /// while no score exceeds it by more than 8: weights are then at most 2^8, which costs no
  /// precision in any of the formats, and most tiles need no scaling (FlashAttention-4 does so
  /// too).
  template <int KeyTiles, int ValueTiles>
  __device__ __forceinline__ void take_maxima(const score_transform& transform,
                                              const float (&scores)[RowTiles][KeyTiles][4],
                                              float (&values)[RowTiles][ValueTiles][4]) {
    float correction[2 * RowTiles];
    bool changes = false;
#pragma unroll
    for (int half = 0; half < 2 * RowTiles; ++half) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < KeyTiles; ++n) {
        const float* const pair = &scores[half / 2][n][half % 2 * 2];
        largest = fmaxf(largest, fmaxf(pair[0], pair[1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2)) * transform.factor;
      correction[half] = 1;
      if (largest > max_log2[half] + 8) {
        correction[half] = exp2_approximate(max_log2[half] - largest);
        max_log2[half] = largest;
        changes = true;
      }
    }
    if (!__any_sync(0xffffffffU, changes)) return;
#pragma unroll
    for (int half = 0; half < 2 * RowTiles; ++half) {
      sum[half] *= correction[half];
#pragma unroll
      for (int n = 0; n < ValueTiles; ++n) {
        values[half / 2][n][half % 2 * 2] *= correction[half];
        values[half / 2][n][half % 2 * 2 + 1] *= correction[half];
      }
    }
  }

  /// Turns scores of accumulator tile r, as many as make a left operand, into weights; adds them to
  /// the sums.
  template <int Accumulators>
  __device__ __forceinline__ void weights(const score_transform& transform,
                                          int r,
                                          float (&scores)[Accumulators][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = max_log2[2 * r + half];
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
#pragma unroll
        for (int n = 0; n < Accumulators; ++n) {
          scores[n][i] = exp2_approximate(fmaf(scores[n][i], transform.factor, -shift));
        }
      }
      float added = scores[0][2 * half] + scores[0][2 * half + 1];
#pragma unroll
      for (int n = 1; n < Accumulators; ++n) added += scores[n][2 * half] + scores[n][2 * half + 1];
      sum[2 * r + half] += added;
    }
  }

  /// The statistics of a row, complete in all four lanes of its quad.
  __device__ __forceinline__ row_statistics row(int half) const {
    float total = sum[half];
    total += __shfl_xor_sync(0xffffffffU, total, 1);
    total += __shfl_xor_sync(0xffffffffU, total, 2);
    return {max_log2[half], total};
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
