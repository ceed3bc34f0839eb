// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// A .cu file that includes everything and instantiates a kernel; it runs one where there is a
// device.

#include <array>
#include <blockattn/blockattn.hpp>
#include <blockattn/cuda/forward.cuh>
#include <cstdio>

namespace ba = blockattn;

int main() {
  constexpr ba::index_t tokens = 4, head_dim = 64;
  const auto layout = ba::block_layout::from_sequence({.context = {1, 2}, .final_block = 1});
  const auto plan =
      ba::make_tile_plan(ba::block_attention_mask(layout), ba::cuda::tile_shape_for(head_dim));
  if (ba::cuda::device_plan_size(plan, 1) <= 0) return 1;

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no device\n");
    return 0;
  }
  const ba::cuda::owned_device_plan on_device(plan, 1, nullptr);
  ba::bfloat16* ones = nullptr;
  ba::bfloat16* o = nullptr;
  constexpr std::size_t bytes = tokens * head_dim * sizeof(ba::bfloat16);
  const std::vector<ba::bfloat16> host(tokens * head_dim, ba::bfloat16{0x3f80});
  if (cudaMalloc(&ones, bytes) != cudaSuccess || cudaMalloc(&o, bytes) != cudaSuccess ||
      cudaMemcpy(ones, host.data(), bytes, cudaMemcpyHostToDevice) != cudaSuccess)
    return 1;
  const auto in = ba::token_major<const ba::bfloat16>(ones, tokens, 1, head_dim);
  ba::cuda::forward<ba::bfloat16>(
      {.q = in, .k = in, .v = in, .o = ba::token_major(o, tokens, 1, head_dim)}, on_device.plan(),
      {}, {}, nullptr);
  std::vector<ba::bfloat16> result(host.size());
  if (cudaMemcpy(result.data(), o, bytes, cudaMemcpyDeviceToHost) != cudaSuccess) return 1;
  for (const ba::bfloat16 value : result) {
    if (value.bits != 0x3f80) return 1;
  }
}
