// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// The row-wise calls on one GPU: microseconds and TB/s, read and written, in bf16 on normal data,
// beside a device-to-device copy of the same run.

#include <blockattn/cuda/merge.cuh>
#include <blockattn/cuda/merge_backward.cuh>
#include <blockattn/cuda/rotate.cuh>
#include <blockattn/cuda/scatter_rows.cuh>
#include <blockattn/layout/sink_tokens.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "measure.cuh"

namespace ba = blockattn;

using ba::bfloat16;
using ba::index_t;
using namespace measure;

namespace {

void print_row(const std::string& name, const std::string& shape, double bytes, double time) {
  std::printf("| %-24s | %-30s | %8.1f | %5.2f |\n", name.c_str(), shape.c_str(), 1000 * time,
              bytes / time * 1e-9);
}

struct row_shape {
  index_t tokens, heads, head_dim;

  std::size_t elements() const { return static_cast<std::size_t>(tokens * heads * head_dim); }
  double bytes() const { return 2.0 * static_cast<double>(elements()); }
  double lse_bytes() const { return 4.0 * static_cast<double>(tokens * heads); }
  std::string text() const {
    return std::to_string(tokens) + " x " + std::to_string(heads) + " x " +
           std::to_string(head_dim);
  }
  template <class T>
  ba::heads_view<T> view(const device_memory& memory) const {
    return ba::token_major(static_cast<T*>(memory.get()), tokens, heads, head_dim);
  }
  template <class T>
  ba::lse_view<T> lse(const device_memory& memory) const {
    return ba::token_major_lse(static_cast<T*>(memory.get()), tokens, heads);
  }
};

void print_merge(const row_shape& shape, index_t count) {
  const std::string text = shape.text() + ", " + std::to_string(count) + " states";
  const auto lse_size = static_cast<std::size_t>(shape.lse_bytes());
  std::vector<device_memory> o, lse, d_o, d_lse;
  std::vector<ba::partial_state<bfloat16>> states;
  std::vector<ba::partial_state_gradient<bfloat16>> gradients;
  for (index_t s = 0; s < count; ++s) {
    o.push_back(random_values(shape.elements(), static_cast<std::uint64_t>(s)));
    lse.push_back(allocate(lse_size));
    require(cudaMemset(lse.back().get(), 0, lse_size), "cudaMemset");
    d_o.push_back(allocate(2 * shape.elements()));
    d_lse.push_back(allocate(lse_size));
    states.push_back(
        {.o = shape.view<const bfloat16>(o.back()), .lse = shape.lse<const float>(lse.back())});
    gradients.push_back(
        {.d_o = shape.view<bfloat16>(d_o.back()), .d_lse = shape.lse<float>(d_lse.back())});
  }
  const device_memory merged = random_values(shape.elements(), 100);
  const device_memory merged_lse = allocate(lse_size);
  const auto states_count = static_cast<double>(count);
  print_row("merge", text, (states_count + 1) * (shape.bytes() + shape.lse_bytes()),
            milliseconds([&] {
              ba::cuda::merge(ba::merge_arguments<bfloat16>{.states = states,
                                                            .o = shape.view<bfloat16>(merged),
                                                            .lse = shape.lse<float>(merged_lse)},
                              {}, nullptr);
            }));
  print_row("merge_backward", text,
            (2 * states_count + 1) * shape.bytes() + 2 * states_count * shape.lse_bytes(),
            milliseconds([&] {
              ba::cuda::merge_backward(
                  ba::merge_backward_arguments<bfloat16>{.states = states,
                                                         .d_o = shape.view<const bfloat16>(merged),
                                                         .gradients = gradients},
                  {}, nullptr);
            }));
}

void print_rotate(const row_shape& shape, ba::rope_pairing pairing) {
  const ba::rope rotation({.head_dim = shape.head_dim, .pairing = pairing});
  const device_memory rows = random_values(shape.elements(), 1);
  const std::size_t size = sizeof(double) * static_cast<std::size_t>(shape.tokens);
  const device_memory positions = allocate(size);
  std::vector<double> values;
  for (index_t t = 0; t < shape.tokens; ++t) values.push_back(static_cast<double>(t));
  require(cudaMemcpy(positions.get(), values.data(), size, cudaMemcpyHostToDevice), "cudaMemcpy");
  const bool split = pairing == ba::rope_pairing::half_split;
  print_row(split ? "rotate, half_split" : "rotate, interleaved", shape.text(), 2 * shape.bytes(),
            milliseconds([&] {
              ba::cuda::rotate(rotation, shape.view<bfloat16>(rows), shape.view<bfloat16>(rows),
                               {static_cast<const double*>(positions.get()), values.size()},
                               nullptr);
            }));
}

template <class T>
std::span<T> elements(const device_memory& memory, index_t count) {
  return {static_cast<T*>(memory.get()), static_cast<std::size_t>(count)};
}

void print_scatter(index_t blocks, index_t block_tokens, index_t columns) {
  const auto layout = ba::with_sink_tokens(ba::block_layout::from_lengths(std::vector<index_t>(
                                               static_cast<std::size_t>(blocks), block_tokens)),
                                           {.tokens_per_block = 4});
  const auto map_size = static_cast<std::size_t>(ba::cuda::device_layout_size(layout));
  const device_memory map = allocate(map_size);
  std::vector<std::byte> staging(map_size);
  const ba::cuda::device_layout there =
      ba::cuda::upload_layout(layout, bytes(map, map_size), staging, nullptr);
  require(cudaDeviceSynchronize(), "the upload");
  const index_t source_values = layout.source_tokens() * columns;
  const index_t all_values = layout.tokens() * columns;
  const device_memory source = random_values(static_cast<std::size_t>(source_values), 1);
  const device_memory sinks = random_values(static_cast<std::size_t>(4 * columns), 2);
  const device_memory all = random_values(static_cast<std::size_t>(all_values), 3);
  const std::string text = std::to_string(blocks) + " blocks, " + std::to_string(layout.tokens()) +
                           " x " + std::to_string(columns);
  const double traffic = 2.0 * static_cast<double>(source_values + all_values);
  print_row("scatter_rows", text, traffic, milliseconds([&] {
              ba::cuda::scatter_rows<bfloat16>(there, elements<bfloat16>(source, source_values),
                                               elements<bfloat16>(sinks, 4 * columns),
                                               elements<bfloat16>(all, all_values), columns,
                                               nullptr);
            }));
  print_row("scatter_rows_backward", text, traffic, milliseconds([&] {
              ba::cuda::scatter_rows_backward(there, elements<const bfloat16>(all, all_values),
                                              elements<bfloat16>(source, source_values),
                                              elements<bfloat16>(sinks, 4 * columns), columns,
                                              nullptr);
            }));
}

}  // namespace

int main() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  std::printf("%s, bf16, token-major; device copy: %.2f TB/s\n\n", device.name, copy_rate());
  std::puts(
      "| rows                     | shape                          |       us |  TB/s |\n"
      "|--------------------------|--------------------------------|----------|-------|");
  for (const index_t states : {2, 8}) {
    print_merge({8192, 32, 128}, states);
    print_merge({8192, 64, 64}, states);
    print_merge({64, 32, 128}, states);
  }
  for (const ba::rope_pairing pairing :
       {ba::rope_pairing::half_split, ba::rope_pairing::interleaved}) {
    print_rotate({8192, 32, 128}, pairing);
    print_rotate({32768, 8, 128}, pairing);
    print_rotate({64, 32, 128}, pairing);
  }
  print_scatter(64, 512, 4096);
  print_scatter(2000, 50, 2048);
}
