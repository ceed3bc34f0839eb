// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// Catch2 2 is one header, Catch2 3 a library: tests include this and work with both.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
