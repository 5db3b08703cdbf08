// Inputs for codec tests: values of many kinds, in every data type, and the float32 numbers that
// the codec is to see in them.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "codec.h"
#include "core/convert.h"

namespace gct::test {

inline CodecParams params(Kind kind, Target target, double value, int allocation8 = 8,
                          Rounding rounding = Rounding::kDeterministic) {
  CodecParams p;
  p.kind = kind;
  p.target = target;
  p.value = value;
  p.allocation8 = allocation8;
  p.rounding = rounding;
  p.seed = 12345;
  return p;
}

// What a value coded by the trellis may be off, in steps. A branch has levels two steps apart and
// may prefer the farther one of two, and at the alphabet's end a magnitude to an escape of 20 bits
// more: 1.3^2 = 20 kTrellisLambda.
constexpr double kTrellisReach = 2 + 1.3;

inline CodecParams high_effort(CodecParams p) {
  p.effort = Effort::kHigh;
  return p;
}

inline CodecParams unit_gain(CodecParams p) {
  p.reconstruction = Reconstruction::kUnitGain;
  return p;
}

// The standard's distributions differ between libraries; these don't.
inline double gaussian(Random* r) {
  const double radius = std::sqrt(-2 * std::log(1 - r->unit()));
  return radius * std::cos(6.283185307179586 * r->unit());
}

// Marsaglia and Tsang 2000.
inline double gamma_variate(double a, Random* r) {
  if (a < 1) return gamma_variate(a + 1, r) * std::pow(1 - r->unit(), 1 / a);
  const double d = a - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = gaussian(r), v = std::pow(1 + c * x, 3);
    if (v > 0 && std::log(1 - r->unit()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

// |x|^shape is Gamma(1 / shape) distributed.
inline double generalized_gaussian(double shape, Random* r) {
  const double magnitude = std::pow(gamma_variate(1 / shape, r), 1 / shape);
  return r->below(2) == 0 ? magnitude : -magnitude;
}

struct ValueKind {
  const char* name;
  std::function<double(int64_t i, Random* r)> draw;
};

inline const std::vector<ValueKind>& value_kinds() {
  static const std::vector<ValueKind> kinds = {
      {"normal", [](int64_t, Random* r) { return 1e-3 * gaussian(r); }},
      {"laplace", [](int64_t, Random* r) { return 2e-4 * generalized_gaussian(1, r); }},
      {"heavy", [](int64_t, Random* r) { return 1e-6 * generalized_gaussian(0.3, r); }},
      {"uniform", [](int64_t, Random* r) { return r->unit() - 0.5; }},
      {"scales",  // a gradient: block scales over some octaves
       [](int64_t i, Random* r) {
         return std::exp2(4 * std::sin(static_cast<double>(i / 256))) *
                generalized_gaussian(0.8, r);
       }},
      {"rows",  // an embedding: most rows are exactly zero
       [](int64_t i, Random* r) { return i / 300 % 7 == 0 ? gaussian(r) : 0.0; }},
      {"sparse", [](int64_t, Random* r) { return r->below(50) == 0 ? gaussian(r) : 0.0; }},
      {"zeros", [](int64_t, Random*) { return 0.0; }},
      {"signed zeros", [](int64_t i, Random*) { return i % 2 == 0 ? 0.0 : -0.0; }},
      {"constant", [](int64_t, Random*) { return -0.37; }},
      {"one spike", [](int64_t i, Random*) { return i == 5 ? 1000.0 : 0.0; }},
      {"spike in noise",
       [](int64_t i, Random* r) { return i % 777 == 3 ? -300.0 : 1e-3 * gaussian(r); }},
      {"denormal", [](int64_t, Random* r) { return 1e-40 * gaussian(r); }},
      {"tiny", [](int64_t, Random* r) { return 1e-24 * gaussian(r); }},
      {"large", [](int64_t, Random* r) { return 1e22 * gaussian(r); }},
      {"near max", [](int64_t, Random* r) { return 1e36 * (2 * r->unit() - 1); }},
      {"all scales", [](int64_t i, Random* r) { return std::exp2(i % 200 - 90) * gaussian(r); }},
  };
  return kinds;
}

// Truncating; for making test data only.
inline uint16_t to_float16(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(x);
  if (!std::isfinite(x)) return sign | (std::isnan(x) ? 0x7e00 : 0x7c00);
  if (magnitude >= 65504) return sign | 0x7bff;
  if (magnitude < std::ldexp(1, -14)) return sign | static_cast<uint16_t>(magnitude * 16777216);
  int exponent;
  const double mantissa = std::frexp(magnitude, &exponent);  // in [0.5, 1)
  const int rest = static_cast<int>(mantissa * 2048) - 1024;
  return static_cast<uint16_t>(sign | ((exponent + 14) << 10) | rest);
}

// A buffer of one data type with the float32 values in it.
struct Values {
  DType dtype = DType::kFloat32;
  std::vector<uint8_t> bytes;
  std::vector<float> floats;

  void push(double x) {
    const auto append = [&](auto v) {
      uint8_t raw[sizeof v];
      std::memcpy(raw, &v, sizeof v);
      bytes.insert(bytes.end(), raw, raw + sizeof v);
    };
    const float f = static_cast<float>(x);
    if (dtype == DType::kFloat64) {
      append(x);
      floats.push_back(f);
    } else if (dtype == DType::kFloat32) {
      append(f);
      floats.push_back(f);
    } else if (dtype == DType::kBFloat16) {
      append(float_to_bfloat16(f));
      floats.push_back(bfloat16_to_float(float_to_bfloat16(f)));
    } else {
      append(to_float16(x));
      floats.push_back(float16_to_float(to_float16(x)));
    }
  }
};

inline Values make_values(const ValueKind& kind, DType dtype, int64_t numel, uint64_t seed) {
  Random random(seed);
  Values values;
  values.dtype = dtype;
  for (int64_t i = 0; i < numel; ++i) values.push(kind.draw(i, &random));
  return values;
}

// A matrix whose rows and columns have scales of their own, over `octaves` octaves each; with
// `columns` up to 1 just values.
inline Values make_matrix(DType dtype, int64_t numel, int64_t columns, double octaves,
                          uint64_t seed) {
  Random random(seed);
  Values values;
  values.dtype = dtype;
  std::vector<double> scale;
  for (int64_t j = 0; j < std::max<int64_t>(columns, 1); ++j)
    scale.push_back(1e-3 * std::exp2(octaves * random.unit()));
  double row = 1;
  for (int64_t i = 0; i < numel; ++i) {
    const size_t j = static_cast<size_t>(i) % scale.size();
    if (j == 0) row = std::exp2(octaves * random.unit());
    values.push(row * scale[j] * gaussian(&random));
  }
  return values;
}

// Values cut into runs of the given lengths; a negative length is a raw run. All have rows of
// `columns`.
struct Input {
  Values values;
  std::vector<Run> runs;
  EncodeInput view;

  Input(Values v, const std::vector<int64_t>& lengths, int64_t columns = 0) : values(std::move(v)) {
    const uint8_t* data = values.bytes.data();
    uint64_t position = 1000;
    for (int64_t length : lengths) {
      Run run;
      run.numel = std::abs(length);
      run.raw = length < 0;
      run.data = run.numel == 0 ? nullptr : data;
      run.position = position;
      run.columns = columns;
      data += run.numel * dtype_bytes(values.dtype);
      position += static_cast<uint64_t>(run.numel);
      runs.push_back(run);
    }
    view = {values.dtype, runs.data(), static_cast<int64_t>(runs.size())};
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  int64_t numel() const { return static_cast<int64_t>(values.floats.size()); }
};

// What raw data of all elements take on the wire.
inline size_t raw_bytes(const Input& input) {
  const DType dtype = input.values.dtype;
  const bool half = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  return static_cast<size_t>(input.numel()) * (half ? 2 : 4);
}

inline std::string describe(const CodecParams& p) {
  const char* kinds[] = {"raw", "gg", "eg", "fixed"};
  const char* targets[] = {"bits", "snr_db", "step"};
  return std::string(kinds[static_cast<int>(p.kind)]) + " " + targets[static_cast<int>(p.target)] +
         "=" + std::to_string(p.value) + " allocation " + std::to_string(p.allocation8) +
         (p.rounding == Rounding::kStochastic ? " stochastic" : "") +
         (p.effort == Effort::kHigh ? " high effort" : "") +
         (p.reconstruction == Reconstruction::kUnitGain ? " unit gain" : "");
}

}  // namespace gct::test
