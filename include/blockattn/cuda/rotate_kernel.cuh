// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/device_rope.cuh>
#include <blockattn/cuda/row_access.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// out = factor * U_p in for p = sign * positions[token], or sign * position without positions.
template <storage_format In, storage_format Out>
struct rotate_parameters {
  input_rows<In> in;
  result_rows<Out> out;
  const double* positions;  ///< (tokens) or null
  double position;
  double sign, factor;
  int tokens, heads, head_dim;
  int vectors;      ///< 1 when every chunk of a row is at a multiple of 16 bytes, in and out
  int copies_rest;  ///< 1 when the values from 2 * pairs on have to be copied
  device_rope turn;
};

/// Rows that a cta turns: their angles are computed once for all heads among them.
inline constexpr int rotate_tokens = 4;
inline constexpr int rotate_heads = 32;

/// Turns pairs [8 chunk, 8 chunk + 8) of one row: the chunks that hold their first and second
/// values are read whole before either is written, so that rows may be rotated in place.
template <storage_format In, storage_format Out>
__device__ __forceinline__ void rotate_chunk(const rotate_parameters<In, Out>& p,
                                             const stored_bits<In>* in,
                                             stored_bits<Out>* out,
                                             int chunk,
                                             const float* cosines,
                                             const float* sines) {
  const bool split = p.turn.step == 1;
  const int pairs = min(chunk_size, p.turn.pairs - chunk * chunk_size);
  const int first = split ? chunk * chunk_size : 2 * chunk * chunk_size;
  const int second = split ? first + p.turn.pairs : first + chunk_size;
  const int first_count = split ? pairs : min(chunk_size, 2 * pairs);
  const int second_count = split ? pairs : 2 * pairs - chunk_size;
  float a[chunk_size], b[chunk_size], c[chunk_size], s[chunk_size];
  load_chunk<In>(a, in + first, first_count, p.vectors);
  load_chunk<In>(b, in + second, second_count, p.vectors);
  load_chunk<storage_format::fp32>(c, cosines + chunk * chunk_size, chunk_size, 1);
  load_chunk<storage_format::fp32>(s, sines + chunk * chunk_size, chunk_size, 1);
  const auto rotate = [](float& x, float& y, float cosine, float sine) {
    const float turned = x * cosine - y * sine;
    y = y * cosine + x * sine;
    x = turned;
  };
  if (split) {
#pragma unroll
    for (int i = 0; i < chunk_size; ++i) rotate(a[i], b[i], c[i], s[i]);
  } else {
#pragma unroll
    for (int i = 0; i < chunk_size / 2; ++i) {
      rotate(a[2 * i], a[2 * i + 1], c[i], s[i]);
      rotate(b[2 * i], b[2 * i + 1], c[i + chunk_size / 2], s[i + chunk_size / 2]);
    }
  }
  store_chunk<Out>(out + first, a, first_count, p.vectors);
  store_chunk<Out>(out + second, b, second_count, p.vectors);
}

/// Grid: groups of rotate_tokens tokens x groups of rotate_heads heads.
template <storage_format In, storage_format Out>
__global__ void __launch_bounds__(row_threads)
    rotate_kernel(const __grid_constant__ rotate_parameters<In, Out> p) {
  __shared__ alignas(16) float cosines[rotate_tokens][device_rope::most_pairs];
  __shared__ alignas(16) float sines[rotate_tokens][device_rope::most_pairs];
  const unsigned head_groups = static_cast<unsigned>((p.heads - 1) / rotate_heads + 1);
  const int first_token = static_cast<int>(blockIdx.x / head_groups) * rotate_tokens;
  const int first_head = static_cast<int>(blockIdx.x % head_groups) * rotate_heads;
  const int tokens = min(rotate_tokens, p.tokens - first_token);
  const int heads = min(rotate_heads, p.heads - first_head);
  const int thread = static_cast<int>(threadIdx.x);

  // Behind the last pair, to the end of its chunk, the rates are 0.
  const int rotary_chunks = (p.turn.pairs + chunk_size - 1) / chunk_size;
  for (int pair = thread; pair < rotary_chunks * chunk_size; pair += row_threads) {
#pragma unroll
    for (int t = 0; t < rotate_tokens; ++t) {
      if (t >= tokens) continue;
      const double position = p.positions != nullptr ? p.positions[first_token + t] : p.position;
      const double2 angle = p.turn.exact_angle(p.sign * position, pair);
      cosines[t][pair] = static_cast<float>(p.factor * angle.x);
      sines[t][pair] = static_cast<float>(p.factor * angle.y);
    }
  }
  __syncthreads();

  const int rest = p.copies_rest != 0 ? p.head_dim - 2 * p.turn.pairs : 0;
  const int chunks = rotary_chunks + (rest + chunk_size - 1) / chunk_size;
  for (int item = thread; item < tokens * heads * chunks; item += row_threads) {
    const int row = item / chunks;
    const int chunk = item % chunks;
    const int token = row / heads;
    const int head = first_head + row % heads;
    const stored_bits<In>* const in = p.in.row(first_token + token, head);
    stored_bits<Out>* const out = p.out.row(first_token + token, head);
    if (chunk < rotary_chunks) {
      rotate_chunk(p, in, out, chunk, cosines[token], sines[token]);
    } else {
      const int column = 2 * p.turn.pairs + (chunk - rotary_chunks) * chunk_size;
      float values[chunk_size];
      load_chunk<In>(values, in + column, p.head_dim - column, p.vectors);
      store_chunk<Out>(out + column, values, p.head_dim - column, p.vectors);
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
