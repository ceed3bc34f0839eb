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
};

/// Warps of a cta that joins the parts of a row: they share its parts, which are far away, so that
/// all are under way at a time.
inline constexpr int merge_warps = 8;

/// Joins the partial results of a row in an order that its parts alone determine, and ends it. One
/// cta of merge_warps for each row.
template <int Columns>
class part_merger {
 public:
  static constexpr int pairs = Columns / 2;
  static_assert(pairs <= 32 * merge_warps);

  __device__ __forceinline__ void merge(const output_rows& out,
                                        const row_parts& row,
                                        const partition_run* runs,
                                        int run_count,
                                        std::int64_t token,
                                        int head) {
    int begin = 0;
    for (int run = 0; run < run_count; ++run) {
      const int end = begin + runs[run].parts;
      sum_parts(row, begin, end);
      __syncthreads();
      join_warps(runs[run].weight);
      __syncthreads();
      begin = end;
    }
    const int column = 2 * static_cast<int>(threadIdx.x);
    const float factor = finish_row(out, all_, token, head, threadIdx.x == 0);
    if (column >= out.value_dim) return;
    const std::int64_t at = out.element(token, head) + column;
    out.store(at, values_.x * factor);
    out.store(at + 1, values_.y * factor);
  }

 private:
  struct warp_sums {
    row_statistics rows[merge_warps];
    float2 values[merge_warps][pairs];
  };
  static __device__ __forceinline__ warp_sums& sums() {
    __shared__ warp_sums shared;
    return shared;
  }

  /// Every merge_warps-th of the parts [begin, end), by each warp.
  __device__ __forceinline__ void sum_parts(const row_parts& row, int begin, int end) const {
    constexpr int per_lane = pairs / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row_statistics sum{no_maximum, 0};
    float2 values[per_lane] = {};
#pragma unroll 8
    for (int part = begin + warp; part < end; part += merge_warps) {
      const row_statistics one = row.statistics[part * row.apart];
      const auto* const from =
          reinterpret_cast<const float2*>(row.values) + part * row.apart * pairs + lane;
      const float largest = fmaxf(sum.max_log2, one.max_log2);
      const float keeps = exp2_approximate(sum.max_log2 - largest);
      const float takes = exp2_approximate(one.max_log2 - largest);
      sum = {largest, keeps * sum.sum + takes * one.sum};
#pragma unroll
      for (int i = 0; i < per_lane; ++i) {
        const float2 pair = from[i * 32];
        values[i] = {keeps * values[i].x + takes * pair.x, keeps * values[i].y + takes * pair.y};
      }
    }
    sums().rows[warp] = sum;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) sums().values[warp][i * 32 + lane] = values[i];
  }

  /// Adds the partition that the warps have summed up, in the two columns of each thread.
  __device__ __forceinline__ void join_warps(const partition_weight& weight) {
    const int pair = static_cast<int>(threadIdx.x);
    row_statistics joint{no_maximum, 0};
    for (int warp = 0; warp < merge_warps; ++warp) {
      joint.max_log2 = fmaxf(joint.max_log2, sums().rows[warp].max_log2);
    }
    float2 values{};
#pragma unroll
    for (int warp = 0; warp < merge_warps; ++warp) {
      const row_statistics one = sums().rows[warp];
      const float takes = exp2_approximate(one.max_log2 - joint.max_log2);
      joint.sum += takes * one.sum;
      if (pair >= pairs) continue;
      values.x += takes * sums().values[warp][pair].x;
      values.y += takes * sums().values[warp][pair].y;
    }
    const float shift = weight.shift_log2(joint);
    if (joint.sum == 0 || shift == -INFINITY) return;
    const float largest = fmaxf(all_.max_log2, joint.max_log2 + shift);
    const float keeps = exp2_approximate(all_.max_log2 - largest);
    const float takes = exp2_approximate(joint.max_log2 + shift - largest);
    all_ = {largest, keeps * all_.sum + takes * joint.sum};
    values_ = {keeps * values_.x + takes * values.x, keeps * values_.y + takes * values.y};
  }

  row_statistics all_{no_maximum, 0};
  float2 values_{};  ///< columns 2 threadIdx.x and the next
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
