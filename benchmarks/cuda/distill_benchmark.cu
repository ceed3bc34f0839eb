// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// The table of figures of the distillation loss with its gradient on one GPU: milliseconds, the
// bytes that must move (teacher and student read once, the gradient written once; of a top-k
// teacher the student alone) and their rate, beside a device-to-device copy of the same run.

#include <blockattn/cuda/distillation_loss.cuh>

#include "measure.cuh"

namespace ba = blockattn;
using namespace measure;

namespace {

constexpr ba::index_t tokens = 4096;

/// Logits from a hash of their index, spread evenly over [-8, 8).
template <class T>
__global__ void fill_logits_kernel(T* values, std::size_t count, std::uint64_t seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    std::uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ULL + seed;
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 29;
    ba::cuda::detail::store_value(values + i, static_cast<float>(x & 0xffff) / 4096.0F - 8);
  }
}

template <class T>
device_memory random_logits(std::size_t count, std::uint64_t seed) {
  device_memory memory = allocate(sizeof(T) * count);
  fill_logits_kernel<<<1024, 256>>>(static_cast<T*>(memory.get()), count, seed);
  require(cudaDeviceSynchronize(), "fill_logits_kernel");
  return memory;
}

/// k tokens evenly apart, each with the same probability; together they weigh 0.9.
struct top_k_memory {
  top_k_memory(ba::index_t k, ba::index_t vocabulary)
      : ids(allocate(sizeof(std::int32_t) * static_cast<std::size_t>(tokens * k))),
        logs(allocate(sizeof(float) * static_cast<std::size_t>(tokens * k))) {
    std::vector<std::int32_t> host_ids;
    for (ba::index_t i = 0; i < tokens * k; ++i)
      host_ids.push_back(static_cast<std::int32_t>(i % k * (vocabulary / k)));
    const std::vector<float> host_logs(host_ids.size(),
                                       static_cast<float>(std::log(0.9 / static_cast<double>(k))));
    upload(ids, host_ids);
    upload(logs, host_logs);
    teacher = {.ids = {static_cast<const std::int32_t*>(ids.get()), host_ids.size()},
               .log_probabilities = {static_cast<const float*>(logs.get()), host_ids.size()}};
  }
  template <class T>
  static void upload(const device_memory& to, const std::vector<T>& from) {
    require(cudaMemcpy(to.get(), from.data(), sizeof(T) * from.size(), cudaMemcpyHostToDevice),
            "cudaMemcpy");
  }

  device_memory ids, logs;
  ba::top_k_teacher<float> teacher;
};

template <class T>
void print_rows(const char* format, ba::index_t vocabulary, double copy) {
  const auto count = static_cast<std::size_t>(tokens * vocabulary);
  const device_memory teacher = random_logits<T>(count, 1);
  const device_memory student = random_logits<T>(count, 2);
  const device_memory gradient = allocate(sizeof(T) * count);
  const device_memory loss = allocate(sizeof(double));
  const auto size = static_cast<std::size_t>(ba::cuda::distillation_loss_workspace_size(tokens));
  const device_memory workspace = allocate(size);
  const top_k_memory top_64(64, vocabulary);
  const auto logits = [&](const device_memory& memory) {
    return ba::dense_logits(static_cast<T*>(memory.get()), tokens, vocabulary);
  };
  const auto print_row = [&](const char* name, const ba::distillation_arguments<T>& arguments,
                             const ba::distillation_options& options, int passes_of_memory) {
    const double time = milliseconds([&] {
      ba::cuda::distillation_loss(arguments, options, static_cast<double*>(loss.get()),
                                  bytes(workspace, size), nullptr);
    });
    const double moved = passes_of_memory * static_cast<double>(sizeof(T) * count);
    const double rate = moved / time * 1e-9;
    std::printf("| %-4s | %6ld | %-24s | %7.3f | %5.2f | %5.2f | %4.0f%% |\n", format,
                static_cast<long>(vocabulary), name, time, moved * 1e-9, rate, 100 * rate / copy);
  };
  using arguments = ba::distillation_arguments<T>;
  const arguments full = {
      .teacher = logits(teacher), .student = logits(student), .d_student = logits(gradient)};
  arguments without = full;
  without.d_student = {};
  const arguments top_k = {
      .top_k = top_64.teacher, .student = logits(student), .d_student = logits(gradient)};
  print_row("forward KL", full, {}, 3);
  print_row("forward KL, loss alone", without, {}, 2);
  print_row("reverse KL", full, {.divergence = ba::divergence::reverse_kl}, 3);
  print_row("Jensen-Shannon", full, {.divergence = ba::divergence::jensen_shannon}, 3);
  print_row("forward KL, top 64", top_k, {}, 2);
  arguments in_place = full;  // last: it overwrites the logits
  in_place.d_student = logits(student);
  print_row("forward KL, in place", in_place, {}, 3);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  const double copy = copy_rate();
  std::printf(
      "%s, %ld tokens, device copy: %.2f TB/s\n"
      "| type |  vocab | loss and gradient        |      ms |    GB |  TB/s | copy  |\n"
      "|------|--------|--------------------------|---------|-------|-------|-------|\n",
      device.name, static_cast<long>(tokens), copy);
  for (const ba::index_t vocabulary : {49152, 151936}) {
    print_rows<float>("fp32", vocabulary, copy);
    print_rows<ba::bfloat16>("bf16", vocabulary, copy);
  }
}
