// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// attend_blocks on one GPU, in bf16 on random data: one query over a long cache (bytes of keys and
// values a second, beside a device copy of the same run), and short final blocks (TFLOP/s of
// visible pairs). Eight calls, each with keys of its own as the layers of a model have them, are
// replayed as a CUDA graph; beside them what one call takes on the host without it.

#include <blockattn/cuda/attend_blocks.cuh>
#include <blockattn/rope/rope.hpp>
#include <chrono>

#include "measure.cuh"

namespace ba = blockattn;
using namespace measure;

namespace {

constexpr int layers = 8;
constexpr ba::index_t query_heads = 32;
constexpr ba::index_t kv_heads = 8;

struct work {
  const char* name;
  ba::index_t queries;  ///< of each sequence
  ba::index_t sequences;
  ba::index_t keys;     ///< of each sequence, in segments
  ba::index_t segment;  ///< keys of a segment
  ba::index_t head_dim;
  bool at_other_places;  ///< each segment under a shift of its own
};

void print_row(const work& w) {
  using ba::bfloat16;
  const ba::rope rope({.head_dim = w.head_dim, .theta = 500000});
  const ba::index_t tokens = w.queries * w.sequences;
  const auto count = [&w](ba::index_t rows, ba::index_t heads) {
    return static_cast<std::size_t>(rows * heads * w.head_dim);
  };
  const ba::index_t all_keys = (w.keys + w.queries) * w.sequences;
  const device_memory q = random_values(count(tokens, query_heads), 1);
  const device_memory o = allocate(2 * count(tokens, query_heads));
  const device_memory lse = allocate(static_cast<std::size_t>(4 * tokens * query_heads));
  struct layer {
    device_memory k, v, workspace;
    void* staging = nullptr;
    std::vector<std::vector<ba::key_segment<bfloat16>>> segments;
    std::vector<ba::attend_sequence<bfloat16>> sequences;
    ba::attend_arguments<bfloat16> arguments;
    ba::cuda::attend_sizes sizes;
  };
  const ba::attend_options options{.rope = &rope};
  std::vector<layer> model(layers);
  for (layer& l : model) {
    l.k = random_values(count(all_keys, kv_heads), 2);
    l.v = random_values(count(all_keys, kv_heads), 3);
    ba::index_t at = 0;
    const auto take = [&](ba::index_t keys, double shift) {
      const auto rows = [&](const device_memory& memory) {
        const auto* const data = static_cast<const bfloat16*>(memory.get());
        return ba::token_major(data + at * kv_heads * w.head_dim, keys, kv_heads, w.head_dim);
      };
      const ba::key_segment<bfloat16> segment{.k = rows(l.k), .v = rows(l.v), .query_shift = shift};
      at += keys;
      return segment;
    };
    l.segments.resize(static_cast<std::size_t>(w.sequences));
    ba::index_t query = 0;
    for (auto& segments : l.segments) {
      for (ba::index_t key = 0; key < w.keys; key += w.segment) {
        const double shift = w.at_other_places ? -static_cast<double>(key) : 0;
        segments.push_back(take(std::min(w.segment, w.keys - key), shift));
      }
      l.sequences.push_back({.queries = {query, query + w.queries},
                             .segments = segments,
                             .tail = take(w.queries, 0)});
      query += w.queries;
    }
    l.arguments = {
        .q =
            ba::token_major(static_cast<const bfloat16*>(q.get()), tokens, query_heads, w.head_dim),
        .o = ba::token_major(static_cast<bfloat16*>(o.get()), tokens, query_heads, w.head_dim),
        .lse = ba::token_major_lse(static_cast<float*>(lse.get()), tokens, query_heads),
        .sequences = l.sequences};
    l.sizes = ba::cuda::attend_memory(l.arguments, options);
    l.workspace = allocate(static_cast<std::size_t>(l.sizes.workspace));
    require(cudaMallocHost(&l.staging, static_cast<std::size_t>(l.sizes.staging)), "staging");
  }
  cudaStream_t stream = nullptr;
  require(cudaStreamCreate(&stream), "cudaStreamCreate");
  const auto enqueue = [&] {
    for (const layer& l : model) {
      ba::cuda::attend_blocks(
          l.arguments, options, bytes(l.workspace, static_cast<std::size_t>(l.sizes.workspace)),
          {static_cast<std::byte*>(l.staging), static_cast<std::size_t>(l.sizes.staging)}, stream);
    }
  };
  enqueue();
  require(cudaStreamSynchronize(stream), "the calls");
  const auto before = std::chrono::steady_clock::now();
  enqueue();
  const std::chrono::duration<double, std::micro> host = std::chrono::steady_clock::now() - before;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  enqueue();
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  const double time =
      milliseconds([&] { require(cudaGraphLaunch(replay, nullptr), "the graph"); }) / layers;
  require(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
  require(cudaGraphDestroy(graph), "cudaGraphDestroy");
  require(cudaStreamDestroy(stream), "cudaStreamDestroy");
  for (const layer& l : model) require(cudaFreeHost(l.staging), "cudaFreeHost");
  const double key_bytes = 4.0 * static_cast<double>(all_keys * kv_heads * w.head_dim);
  const double pairs = static_cast<double>(w.sequences) * static_cast<double>(w.queries) *
                       (static_cast<double>(w.keys) + static_cast<double>(w.queries + 1) / 2);
  std::printf("| %-34s | %3ld | %7.1f | %5.2f | %7.1f | %7.1f |\n", w.name,
              static_cast<long>(w.head_dim), 1000 * time, key_bytes / time * 1e-9,
              4 * pairs * static_cast<double>(query_heads * w.head_dim) / time * 1e-9,
              host.count() / layers);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  std::printf("%s, bf16, token-major, heads %ld / %ld; device copy: %.2f TB/s\n\n", device.name,
              static_cast<long>(query_heads), static_cast<long>(kv_heads), copy_rate());
  std::puts(
      "| attend_blocks                      |   d |      us |  TB/s | TFLOP/s | host us |\n"
      "|------------------------------------|-----|---------|-------|---------|---------|");
  constexpr ba::index_t n = 32768;
  for (const work& w : {
           work{"1 query over 32K keys", 1, 1, n, n, 128, false},
           work{"1 query over 64 blocks of 512", 1, 1, n, 512, 128, true},
           work{"1 query over 2048 pages of 16", 1, 1, n, 16, 128, false},
           work{"1 query over 32K keys", 1, 1, n, n, 64, false},
           work{"32 sequences, 1 query over 4K keys", 1, 32, 4096, 4096, 128, false},
           work{"8 queries over 32K keys", 8, 1, n, n, 128, false},
           work{"64 over 32K keys", 64, 1, n, n, 128, false},
           work{"64 over 64 blocks of 512", 64, 1, n, 512, 128, true},
           work{"512 over 32K keys", 512, 1, n, n, 128, false},
           work{"512 over 64 blocks of 512", 512, 1, n, 512, 128, true},
       }) {
    print_row(w);
  }
}
