// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>

namespace blockattn_test {

using namespace blockattn;

/// Relative error of one rounding to the storage type.
template <class T>
constexpr double unit_roundoff() {
  switch (format_of<T>) {
    case storage_format::fp64:
      return 0x1p-53;
    case storage_format::fp32:
      return 0x1p-24;
    case storage_format::fp16:
      return 0x1p-11;
    default:
      return 0x1p-8;
  }
}

}  // namespace blockattn_test
