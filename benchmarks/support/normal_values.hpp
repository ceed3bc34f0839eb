// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <blockattn/core/storage.hpp>
#include <random>
#include <vector>

namespace blockattn_benchmark {

using namespace blockattn;

/// `count` standard normal values, rounded to the storage type.
template <class T>
std::vector<T> normal_values(index_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) store_scalar(value, normal(random));
  return values;
}

}  // namespace blockattn_benchmark
