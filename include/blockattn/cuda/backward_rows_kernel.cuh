// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/backward_parameters.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// The values of four that follow each other, in 8 or 16 bytes.
template <storage_format Format>
__device__ __forceinline__ float4 load_four(const std::uint16_t* values) {
  using operand = tensor_operand<Format>;
  const ushort4 bits = *reinterpret_cast<const ushort4*>(values);
  return {operand::widen(bits.x), operand::widen(bits.y), operand::widen(bits.z),
          operand::widen(bits.w)};
}
template <storage_format Format>
__device__ __forceinline__ float4 load_four(const float* values) {
  return *reinterpret_cast<const float4*>(values);
}

/// Pass 3 of reference::backward for every query row: lse in base 2 and
/// delta = d_o . o - d_lse. One warp for each row; grid: (padded rows / 8, query heads), 256
/// threads.
template <storage_format Format>
__global__ void __launch_bounds__(256)
    backward_rows_kernel(const __grid_constant__ backward_parameters p) {
  const int row = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32);
  const int head = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= p.padded_queries) return;
  float2 result{0, 0};
  if (row < p.query_tokens) {
    constexpr float log2_e = 1.4426950408889634F;
    using operand = tensor_operand<Format>;
    using stored = typename operand::stored;
    const stored* const o = p.o.row<stored>(row, head);
    const stored* const d_o = p.d_o.row<stored>(row, head);
    float sum = 0;
    if (p.o.vectors && p.d_o.vectors) {
      for (int chunk = lane * 4; chunk < p.o.head_dim; chunk += 32 * 4) {  // four values each
        const float4 a = load_four<Format>(o + chunk);
        const float4 b = load_four<Format>(d_o + chunk);
        sum += fmaf(a.x, b.x, a.y * b.y) + fmaf(a.z, b.z, a.w * b.w);
      }
    } else {
      for (int t = lane; t < p.o.head_dim; t += 32) {
        sum = fmaf(operand::widen(o[t]), operand::widen(d_o[t]), sum);
      }
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, apart);
    const float d_lse = p.d_lse != nullptr
                            ? p.d_lse[row * p.d_lse_token_stride + head * p.d_lse_head_stride]
                            : 0.0F;
    const float lse = p.lse[row * p.lse_token_stride + head * p.lse_head_stride];
    result = {lse * log2_e, sum - d_lse};
  }
  if (lane == 0) p.rows[static_cast<std::int64_t>(head) * p.padded_queries + row] = result;
}

/// d_sink = -sum over rows of exp(sink - lse) delta, in an order that depends on nothing. Grid: one
/// cta for each head.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    backward_sink_kernel(const __grid_constant__ backward_parameters p) {
  constexpr float log2_e = 1.4426950408889634F;
  __shared__ float sums[Threads];
  const int head = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const float sink = p.sink_logits[head];
  float sum = 0;
  if (sink != -INFINITY) {
    const float2* const rows = p.rows + static_cast<std::int64_t>(head) * p.padded_queries;
    for (int row = thread; row < p.query_tokens; row += Threads) {
      sum -= exp2f(sink * log2_e - rows[row].x) * rows[row].y;
    }
  }
  sums[thread] = sum;
  for (int half = Threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) p.d_sink_logits[head] = sums[0];
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
