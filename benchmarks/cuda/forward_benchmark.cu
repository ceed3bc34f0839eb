// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// The table of forward figures on one GPU: milliseconds and TFLOP/s of visible pairs in bf16 on
// normal data, beside the ceilings of the same run (a bf16 matrix product through cuBLAS, a
// device-to-device copy).

#include <cublas_v2.h>

#include <blockattn/cuda/forward.cuh>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace ba = blockattn;

namespace {

void require(bool success, const char* what) {
  if (success) return;
  std::fprintf(stderr, "%s failed\n", what);
  std::exit(1);
}
void require(cudaError_t status, const char* what) { require(status == cudaSuccess, what); }

struct free_device {
  void operator()(void* memory) const { static_cast<void>(cudaFree(memory)); }
};
using device_memory = std::unique_ptr<void, free_device>;

device_memory allocate(std::size_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, bytes), "cudaMalloc");
  return device_memory(memory);
}

/// Roughly normal values from a hash of their index (the sum of four uniform ones).
__global__ void fill_kernel(std::uint16_t* values, std::size_t count, std::uint64_t seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    std::uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ULL + seed;
    float sum = 0;
    for (int k = 0; k < 4; ++k) {
      x ^= x >> 33;
      x *= 0xff51afd7ed558ccdULL;
      x ^= x >> 29;
      sum += static_cast<float>(x & 0xffff) / 65536.0F - 0.5F;
    }
    values[i] = static_cast<std::uint16_t>(
        ba::cuda::detail::tensor_operand<ba::storage_format::bf16>::pack(1.73F * sum, 0.0F));
  }
}

device_memory random_values(std::size_t count, std::uint64_t seed) {
  device_memory memory = allocate(2 * count);
  fill_kernel<<<1024, 256>>>(static_cast<std::uint16_t*>(memory.get()), count, seed);
  require(cudaDeviceSynchronize(), "fill_kernel");
  return memory;
}

/// Median milliseconds of 15 runs after 3 warm-ups.
template <class Run>
double milliseconds(const Run& run) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < 3; ++i) run();
  std::vector<float> times(15);
  for (float& time : times) {
    require(cudaEventRecord(begin), "cudaEventRecord");
    run();
    require(cudaEventRecord(end), "cudaEventRecord");
    require(cudaEventSynchronize(end), "the timed work");
    require(cudaEventElapsedTime(&time, begin, end), "cudaEventElapsedTime");
  }
  std::sort(times.begin(), times.end());
  require(cudaEventDestroy(begin), "cudaEventDestroy");
  require(cudaEventDestroy(end), "cudaEventDestroy");
  return times[times.size() / 2];
}

void print_ceilings() {
  constexpr int n = 8192;
  const device_memory a = random_values(std::size_t{n} * n, 1);
  const device_memory b = random_values(std::size_t{n} * n, 2);
  const device_memory c = allocate(std::size_t{2} * n * n);
  cublasHandle_t handle;
  require(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS, "cublasCreate");
  const float one = 1, zero = 0;
  const double product = milliseconds([&] {
    require(cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a.get(), CUDA_R_16BF, n,
                         b.get(), CUDA_R_16BF, n, &zero, c.get(), CUDA_R_16BF, n,
                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS,
            "cublasGemmEx");
  });
  cublasDestroy(handle);
  const std::size_t bytes = std::size_t{2} << 30;
  const device_memory from = allocate(bytes);
  const device_memory to = allocate(bytes);
  const double copy = milliseconds([&] {
    require(cudaMemcpyAsync(to.get(), from.get(), bytes, cudaMemcpyDeviceToDevice), "the copy");
  });
  std::printf("bf16 product 8192^3 through cuBLAS: %.0f TFLOP/s; device copy: %.2f TB/s\n\n",
              2.0 * n * n * n / product * 1e-9, 2.0 * static_cast<double>(bytes) / copy * 1e-9);
}

/// Lengths in [low, high] for all but the final block, from a seed of its own.
std::vector<ba::index_t> ragged(ba::index_t total,
                                ba::index_t low,
                                ba::index_t high,
                                ba::index_t final_block) {
  std::mt19937 random(7);
  std::vector<ba::index_t> lengths;
  for (ba::index_t left = total - final_block; left > 0; left -= lengths.back()) {
    const auto drawn = low + static_cast<ba::index_t>(random() % (high - low + 1));
    lengths.push_back(std::min(left, drawn));
  }
  lengths.push_back(final_block);
  return lengths;
}

struct work {
  std::string name;
  ba::attention_mask mask;
  ba::index_t query_heads, kv_heads, head_dim;
};

std::vector<work> works() {
  const auto blocks = [](const std::vector<ba::index_t>& lengths) {
    return ba::block_attention_mask(ba::block_layout::from_lengths(lengths));
  };
  constexpr ba::index_t n = 32768;
  return {
      {"causal 8K", ba::causal_mask(8192), 32, 32, 128},
      {"causal 16K", ba::causal_mask(16384), 16, 16, 128},
      {"causal 32K", ba::causal_mask(n), 32, 8, 128},
      {"causal 8K", ba::causal_mask(8192), 64, 64, 64},
      {"63 blocks of 512 + 512", blocks(std::vector<ba::index_t>(64, 512)), 32, 8, 128},
      {"ragged 40..1400 + 512", blocks(ragged(n, 40, 1400, 512)), 32, 8, 128},
      {"ragged 16..128 + 64", blocks(ragged(n, 16, 128, 64)), 32, 8, 128},
      {"ragged 40..1400 + 512", blocks(ragged(n, 40, 1400, 512)), 32, 8, 64},
      {"512 over 32K keys", ba::causal_mask(512, n), 32, 8, 128},
      {"64 over 32K keys", ba::causal_mask(64, n), 32, 8, 128},
  };
}

void print_row(const work& w) {
  const ba::index_t queries = w.mask.query_tokens();
  const ba::index_t keys = w.mask.key_tokens();
  const auto elements = [&w](ba::index_t tokens, ba::index_t heads) {
    return static_cast<std::size_t>(tokens * heads * w.head_dim);
  };
  const device_memory q = random_values(elements(queries, w.query_heads), 1);
  const device_memory k = random_values(elements(keys, w.kv_heads), 2);
  const device_memory v = random_values(elements(keys, w.kv_heads), 3);
  const device_memory o = random_values(elements(queries, w.query_heads), 4);
  const device_memory lse = allocate(static_cast<std::size_t>(4 * queries * w.query_heads));

  using clock = std::chrono::steady_clock;
  const auto before = clock::now();
  const ba::tile_plan plan = ba::cuda::make_tile_plan_for(w.mask, w.head_dim, w.head_dim);
  const std::chrono::duration<double, std::micro> planning = clock::now() - before;
  const auto size = static_cast<std::size_t>(ba::cuda::device_plan_size(plan, w.query_heads));
  const device_memory plan_memory = allocate(size);
  void* staging = nullptr;
  require(cudaMallocHost(&staging, size), "cudaMallocHost");
  ba::cuda::device_plan on_device;
  const double upload = milliseconds([&] {
    on_device = ba::cuda::upload_plan(plan, w.query_heads,
                                      {static_cast<std::byte*>(plan_memory.get()), size},
                                      {static_cast<std::byte*>(staging), size}, nullptr);
  });
  const auto workspace_size =
      static_cast<std::size_t>(ba::cuda::forward_workspace_size(on_device, w.head_dim, w.head_dim));
  const device_memory workspace = allocate(std::max<std::size_t>(workspace_size, 1));
  const auto view = [&w]<class T>(T* data, ba::index_t tokens, ba::index_t heads) {
    return ba::token_major(data, tokens, heads, w.head_dim);
  };
  using ba::bfloat16;
  const ba::forward_arguments<bfloat16> arguments = {
      .q = view(static_cast<const bfloat16*>(q.get()), queries, w.query_heads),
      .k = view(static_cast<const bfloat16*>(k.get()), keys, w.kv_heads),
      .v = view(static_cast<const bfloat16*>(v.get()), keys, w.kv_heads),
      .o = view(static_cast<bfloat16*>(o.get()), queries, w.query_heads),
      .lse = ba::token_major_lse(static_cast<float*>(lse.get()), queries, w.query_heads)};
  const double time = milliseconds([&] {
    ba::cuda::forward(arguments, on_device, {},
                      {static_cast<std::byte*>(workspace.get()), workspace_size}, nullptr);
  });
  require(cudaFreeHost(staging), "cudaFreeHost");
  const auto rate = [&](ba::index_t pairs) {
    return 4.0 * static_cast<double>(w.head_dim * w.query_heads) * static_cast<double>(pairs) /
           time * 1e-9;
  };
  std::printf(
      "| %-22s | %3ld | %3ld / %-2ld | %4ld x %-3ld | %8.3f | %7.1f | %7.1f | %8.0f | %6zu | %6.0f "
      "|\n",
      w.name.c_str(), static_cast<long>(w.head_dim), static_cast<long>(w.query_heads),
      static_cast<long>(w.kv_heads), static_cast<long>(plan.shape().queries),
      static_cast<long>(plan.shape().keys), time, rate(plan.statistics().visible_pairs),
      rate(plan.statistics().tile_area), planning.count(), size / 1024, 1000 * upload);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  std::printf("%s, bf16, token-major\n", device.name);
  print_ceilings();
  std::printf(
      "| forward                |   d | heads    | tiles      |       ms | visible |   tiles | "
      "plan, us | KiB    | upload |\n"
      "|                        |     |          |            |          | TFLOP/s | TFLOP/s | "
      "(host)   | (plan) | (us)   |\n"
      "|------------------------|-----|----------|------------|----------|---------|---------|-----"
      "-----|--------|--------|\n");
  for (const work& w : works()) print_row(w);
}
