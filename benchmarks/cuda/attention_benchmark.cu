// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// The tables of figures on one GPU: milliseconds and TFLOP/s of visible pairs in bf16 on normal
// data, beside the ceilings of the same run (a bf16 matrix product through cuBLAS, a
// device-to-device copy).

#include <cublas_v2.h>

#include <blockattn/cuda/backward.cuh>
#include <blockattn/cuda/forward.cuh>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>

#include "measure.cuh"

namespace ba = blockattn;
using namespace measure;

namespace {

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
  std::printf("bf16 product 8192^3 through cuBLAS: %.0f TFLOP/s; device copy: %.2f TB/s\n\n",
              2.0 * n * n * n / product * 1e-9, copy_rate());
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
    return ba::block_attention_mask(ba::with_final_block(ba::block_layout::from_lengths(lengths)));
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

/// A plan on the device, with what it took to bring it there.
struct uploaded_plan {
  device_memory memory;
  ba::cuda::device_plan plan;
  std::size_t size;  ///< bytes
  double upload_microseconds;

  uploaded_plan(const ba::tile_plan& host, ba::index_t query_heads)
      : size(static_cast<std::size_t>(ba::cuda::device_plan_size(host, query_heads))) {
    memory = allocate(size);
    void* staging = nullptr;
    require(cudaMallocHost(&staging, size), "cudaMallocHost");
    upload_microseconds =
        1000 * milliseconds([&] {
          plan = ba::cuda::upload_plan(host, query_heads, bytes(memory, size),
                                       {static_cast<std::byte*>(staging), size}, nullptr);
        });
    require(cudaFreeHost(staging), "cudaFreeHost");
  }
};

/// The tensors of one piece of work, token-major, in bf16.
struct tensors {
  using bfloat16 = ba::bfloat16;

  explicit tensors(const work& w)
      : w_(w),
        q(random_values(elements(queries(), w.query_heads), 1)),
        k(random_values(elements(keys(), w.kv_heads), 2)),
        v(random_values(elements(keys(), w.kv_heads), 3)),
        o(random_values(elements(queries(), w.query_heads), 4)),
        lse(allocate(static_cast<std::size_t>(4 * queries() * w.query_heads))) {}

  ba::index_t queries() const { return w_.mask.query_tokens(); }
  ba::index_t keys() const { return w_.mask.key_tokens(); }
  std::size_t elements(ba::index_t tokens, ba::index_t heads) const {
    return static_cast<std::size_t>(tokens * heads * w_.head_dim);
  }
  template <class T>
  ba::heads_view<T> query_side(const device_memory& memory) const {
    return ba::token_major(static_cast<T*>(memory.get()), queries(), w_.query_heads, w_.head_dim);
  }
  template <class T>
  ba::heads_view<T> key_side(const device_memory& memory) const {
    return ba::token_major(static_cast<T*>(memory.get()), keys(), w_.kv_heads, w_.head_dim);
  }
  ba::lse_view<float> lse_rows() const {
    return ba::token_major_lse(static_cast<float*>(lse.get()), queries(), w_.query_heads);
  }
  ba::forward_arguments<bfloat16> forward_arguments() const {
    return {.q = query_side<const bfloat16>(q),
            .k = key_side<const bfloat16>(k),
            .v = key_side<const bfloat16>(v),
            .o = query_side<bfloat16>(o),
            .lse = lse_rows()};
  }

  const work& w_;
  device_memory q, k, v, o, lse;
};

double teraflops(const work& w, double flops_per_pair, ba::index_t pairs, double time) {
  return flops_per_pair * static_cast<double>(w.head_dim * w.query_heads) *
         static_cast<double>(pairs) / time * 1e-9;
}

/// Milliseconds of forward.
double time_forward(const work& w, const tensors& t, const ba::cuda::device_plan& plan) {
  const auto size =
      static_cast<std::size_t>(ba::cuda::forward_workspace_size(plan, w.head_dim, w.head_dim));
  const device_memory workspace = allocate(std::max<std::size_t>(size, 1));
  return milliseconds(
      [&] { ba::cuda::forward(t.forward_arguments(), plan, {}, bytes(workspace, size), nullptr); });
}

void print_forward_row(const work& w) {
  using clock = std::chrono::steady_clock;
  const auto before = clock::now();
  const ba::tile_plan plan = ba::cuda::make_tile_plan_for(w.mask, w.head_dim, w.head_dim);
  const std::chrono::duration<double, std::micro> planning = clock::now() - before;
  const uploaded_plan uploaded(plan, w.query_heads);
  const tensors t(w);
  const double time = time_forward(w, t, uploaded.plan);
  std::printf(
      "| %-22s | %3ld | %2ld / %-2ld | %3ld x %-3ld | %7.3f | %7.1f | %7.1f | %4.0f | %4zu | %3.0f "
      "|\n",
      w.name.c_str(), static_cast<long>(w.head_dim), static_cast<long>(w.query_heads),
      static_cast<long>(w.kv_heads), static_cast<long>(plan.shape().queries),
      static_cast<long>(plan.shape().keys), time,
      teraflops(w, 4, plan.statistics().visible_pairs, time),
      teraflops(w, 4, plan.statistics().tile_area, time), planning.count(), uploaded.size / 1024,
      uploaded.upload_microseconds);
}

void print_backward_row(const work& w) {
  const ba::tile_plan plan =
      ba::make_tile_plan(w.mask, ba::cuda::backward_tile_shape(), {.transposed = true});
  const uploaded_plan uploaded(plan, w.query_heads);
  const tensors t(w);
  time_forward(w, t, uploaded.plan);  // for o and lse
  using ba::bfloat16;
  const device_memory d_o = random_values(t.elements(t.queries(), w.query_heads), 5);
  const device_memory d_q = allocate(2 * t.elements(t.queries(), w.query_heads));
  const device_memory d_k = allocate(2 * t.elements(t.keys(), w.kv_heads));
  const device_memory d_v = allocate(2 * t.elements(t.keys(), w.kv_heads));
  const ba::backward_arguments<bfloat16> arguments = {.q = t.query_side<const bfloat16>(t.q),
                                                      .k = t.key_side<const bfloat16>(t.k),
                                                      .v = t.key_side<const bfloat16>(t.v),
                                                      .o = t.query_side<const bfloat16>(t.o),
                                                      .lse = t.lse_rows(),
                                                      .d_o = t.query_side<const bfloat16>(d_o),
                                                      .d_q = t.query_side<bfloat16>(d_q),
                                                      .d_k = t.key_side<bfloat16>(d_k),
                                                      .d_v = t.key_side<bfloat16>(d_v)};
  const auto time = [&](const ba::cuda::backward_mode& mode) {
    const auto size = static_cast<std::size_t>(ba::cuda::backward_workspace_size(
        uploaded.plan, w.head_dim, w.head_dim, ba::storage_format::bf16, mode));
    const device_memory workspace = allocate(size);
    return milliseconds([&] {
      ba::cuda::backward(arguments, uploaded.plan, {}, bytes(workspace, size), nullptr, mode);
    });
  };
  const double any_order = time({});
  const double fixed_order = time({.deterministic = true});
  const ba::tile_statistics& statistics = plan.statistics();
  std::printf("| %-22s | %3ld | %2ld / %-2ld | %7.3f | %7.1f | %7.1f | %7.3f | %7.1f | %7.1f |\n",
              w.name.c_str(), static_cast<long>(w.head_dim), static_cast<long>(w.query_heads),
              static_cast<long>(w.kv_heads), any_order,
              teraflops(w, 10, statistics.visible_pairs, any_order),
              teraflops(w, 10, statistics.tile_area, any_order), fixed_order,
              teraflops(w, 10, statistics.visible_pairs, fixed_order),
              teraflops(w, 14, statistics.tile_area, fixed_order));
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
  std::puts(
      "| forward                |   d | heads   | tiles     |      ms | visible |   tiles | plan | "
      "KiB  | up  |\n"
      "|                        |     |         |           |         | TFLOP/s | TFLOP/s | us   | "
      "plan | us  |\n"
      "|------------------------|-----|---------|-----------|---------|---------|---------|------|-"
      "-----|-----|");
  for (const work& w : works()) print_forward_row(w);
  std::puts(
      "\n"
      "| backward               |   d | heads   | any order of d_q          "
      "| deterministic             |\n"
      "|                        |     |         |      ms | visible |   tiles "
      "|      ms | visible |   tiles |\n"
      "|                        |     |         |         | 10 flop | 10 flop "
      "|         | 10 flop | 14 flop |\n"
      "|------------------------|-----|---------|---------|---------|---------"
      "|---------|---------|---------|");
  for (const work& w : works()) {
    if (w.mask.query_tokens() == w.mask.key_tokens()) print_backward_row(w);
  }
}
