// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/tile_operands.cuh>

/// \file
/// Products of one warp whose left operand has 16 rows; right operands are tiles in shared memory.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// threadIdx.x for a kernel that lacks a few registers: read anew, so that what is computed from it
/// is not kept over a loop. Not on compute capability 9.0, where nothing spills without, and where
/// it takes 2 to 7 % of backward's time.
__device__ __forceinline__ int thread_in_few_registers() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

/// A lane's places in the tiles of a kernel.
template <storage_format Format, int Columns>
struct lane_places {
  using operands = tile_operands<Format, Columns>;
  int left;
  int right;
  int across;

  __device__ __forceinline__ explicit lane_places(int thread = static_cast<int>(threadIdx.x)) {
    const int lane = thread % 32;
    left = operands::left_place(lane);
    right = operands::right_place(lane);
    across = operands::across_place(lane);
  }
};

/// sum = a b^T for the 16 rows of a tile from `a` on and the 8 Tiles rows of a tile `b`. `Unrolled`
/// steps are scheduled together: more hide more latency and take more registers.
template <int Unrolled, storage_format Format, int Columns, int Tiles>
__device__ __forceinline__ void multiply_rows(float (&sum)[Tiles][4],
                                              std::uint32_t a,
                                              std::uint32_t b,
                                              const lane_places<Format, Columns>& places) {
  using operands = tile_operands<Format, Columns>;
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] = 0;
  }
#pragma unroll Unrolled
  for (int step = 0; step < operands::steps; ++step) {
    const typename operands::left left = operands::load_left(a + places.left, 0, step);
#pragma unroll
    for (int n = 0; n < Tiles; n += 2) {
      typename operands::right right[2];
      operands::load_rights(right, b + places.right, n, step);
      operands::operand::multiply_add(sum[n], left, right[0]);
      operands::operand::multiply_add(sum[n + 1], left, right[1]);
    }
  }
}

/// sum += a b for accumulators `a` (16 rows, 8 Tiles columns), rounded, and 8 Sums columns of as
/// many rows of b.
template <storage_format Format, int Columns, int Sums, int Tiles>
__device__ __forceinline__ void add_product(float (&sum)[Sums][4],
                                            const float (&a)[Tiles][4],
                                            std::uint32_t b,
                                            const lane_places<Format, Columns>& places) {
  using operands = tile_operands<Format, Columns>;
  constexpr int accumulators = operands::operand::accumulators;
#pragma unroll
  for (int step = 0; step < Tiles / accumulators; ++step) {
    float values[accumulators][4];
#pragma unroll
    for (int n = 0; n < accumulators; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[n][i] = a[accumulators * step + n][i];
    }
    const typename operands::left left = operands::operand::as_left(values);
#pragma unroll
    for (int n = 0; n < Sums; n += 2) {
      typename operands::right right[2];
      operands::load_rights_across(right, b + places.across, step, n);
      operands::operand::multiply_add(sum[n], left, right[0]);
      operands::operand::multiply_add(sum[n + 1], left, right[1]);
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
