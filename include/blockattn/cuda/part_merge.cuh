// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/output_rows.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What a softmax state brings to a merge in place of its lse: scale * lse + log2_weight / log2(e).
struct partition_weight {
  float scale = 1;
  float log2_weight = 0;

  /// What that adds to the state's lse in base 2; exactly log2_weight with scale 1.
  __device__ __forceinline__ float shift_log2(const row_statistics& joint) const {
    if (joint.sum == 0) return 0;  // sees nothing
    if (scale == 1) return log2_weight;
    return fmaf(scale - 1, joint.max_log2 + log2f(joint.sum), log2_weight);
  }
};

/// Neighbouring parts of a row that form one partition.
struct partition_run {
  std::int32_t parts;
  partition_weight weight;
};

/// Partial results of one row: statistics and sums of weighted values, `apart` rows from one part
/// to the next.
struct row_parts {
  const row_statistics* statistics;
  const float* values;  ///< (rows, columns)
  std::int64_t apart;

  /// Of parts [begin, end) together, on all lanes of a warp.
  __device__ __forceinline__ row_statistics joint(int begin, int end) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    row_statistics all{no_maximum, 0};
    for (int part = begin + lane; part < end; part += 32) {
      const row_statistics one = statistics[part * apart];
      const float largest = fmaxf(all.max_log2, one.max_log2);
      all.sum = exp2_approximate(all.max_log2 - largest) * all.sum +
                exp2_approximate(one.max_log2 - largest) * one.sum;
      all.max_log2 = largest;
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float other_max = __shfl_xor_sync(0xffffffffU, all.max_log2, distance);
      const float other_sum = __shfl_xor_sync(0xffffffffU, all.sum, distance);
      const float largest = fmaxf(all.max_log2, other_max);
      // The same on both lanes, to the bit: an fma would round one of the products.
      all.sum = __fadd_rn(__fmul_rn(exp2_approximate(all.max_log2 - largest), all.sum),
                          __fmul_rn(exp2_approximate(other_max - largest), other_sum));
      all.max_log2 = largest;
    }
    return all;
  }
};

/// Warps of a cta that joins the parts of a row: they share its parts, which are far away and few.
inline constexpr int merge_warps = 4;

/// Joins the partial results of a row in an order that its parts alone determine, and ends it. One
/// cta of merge_warps for each row.
template <int Columns>
__device__ __forceinline__ void merge_row(const output_rows& out,
                                          const row_parts& row,
                                          const partition_run* runs,
                                          int run_count,
                                          std::int64_t token,
                                          int head) {
  static_assert(Columns <= 2 * 32 * merge_warps);
  constexpr int pairs_per_lane = Columns / 64;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  row_statistics all{no_maximum, 0};
  float2 values[pairs_per_lane] = {};  // over the warp's parts
  int begin = 0;
  for (int run = 0; run < run_count; ++run) {
    const int end = begin + runs[run].parts;
    const row_statistics joint = row.joint(begin, end);
    const float shift = runs[run].weight.shift_log2(joint);
    if (joint.sum != 0 && shift != -INFINITY) {
      const float largest = fmaxf(all.max_log2, joint.max_log2 + shift);
      const float kept = exp2_approximate(all.max_log2 - largest);
      all.sum = all.sum * kept + exp2_approximate(joint.max_log2 + shift - largest) * joint.sum;
      all.max_log2 = largest;
#pragma unroll
      for (int i = 0; i < pairs_per_lane; ++i) {
        values[i].x *= kept;
        values[i].y *= kept;
      }
#pragma unroll 8
      for (int part = begin + warp; part < end; part += merge_warps) {
        const float one = row.statistics[part * row.apart].max_log2;
        const float weight = exp2_approximate(one + shift - largest);
        const auto* const from =
            reinterpret_cast<const float2*>(row.values) + part * row.apart * (Columns / 2) + lane;
#pragma unroll
        for (int i = 0; i < pairs_per_lane; ++i) {
          const float2 pair = from[i * 32];
          values[i].x += weight * pair.x;
          values[i].y += weight * pair.y;
        }
      }
    }
    begin = end;
  }
  __shared__ float2 sums[merge_warps][Columns / 2];
#pragma unroll
  for (int i = 0; i < pairs_per_lane; ++i) sums[warp][i * 32 + lane] = values[i];
  const float factor = finish_row(out, all, token, head, threadIdx.x == 0);
  __syncthreads();
  const int pair = static_cast<int>(threadIdx.x);
  const int column = 2 * pair;
  if (column >= out.value_dim) return;
  float2 sum = sums[0][pair];
#pragma unroll
  for (int other = 1; other < merge_warps; ++other) {
    sum.x += sums[other][pair].x;
    sum.y += sums[other][pair].y;
  }
  const std::int64_t at = out.element(token, head) + column;
  out.store(at, sum.x * factor);
  out.store(at + 1, sum.y * factor);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
