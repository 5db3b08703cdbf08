// From a fuzzer's bytes to something to encode: parameters of any kind, a layout of runs, and
// values of which the bytes choose the sort and single ones.
#pragma once

#include <cmath>
#include <memory>

#include "../cpp/inputs.h"

namespace gct::fuzz {

// Takes bytes off the front; zeros once there are none left.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  size_t left() const { return left_; }
  uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  uint32_t u32() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value |= uint32_t{byte()} << (8 * i);
    return value;
  }
  int64_t below(int64_t n) { return n <= 256 ? byte() % n : u32() % n; }
  template <typename T, size_t n>
  T one_of(const T (&values)[n]) {
    return values[byte() % n];
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

constexpr int64_t kMostElements = 6000;  // of a case: low-rank parts begin at 4096
constexpr int64_t kMostRuns = 700;       // small ones: pieces end after 256 blocks
// Rare: two whole pieces, which are decoded at once, and some more.
constexpr int64_t kManyElements = 2 * 256 * 256 + 300;

inline double any_value(Bytes* in) {
  const double inf = HUGE_VAL;
  const double values[] = {0.0,   -0.0,   1.0,  -1.5,  1e-3,  1e-30,  -1e-31,  1e-38,
                           1e-45, -1e-40, 1e30, -1e36, 2e37,  3.4e38, -3.4e38, 65504.,
                           6e-8,  inf,    -inf, NAN,   1e300, 1e-300, 256.0,   -7.25e5};
  const uint8_t which = in->byte();
  if (which < 200) return values[which % (sizeof values / sizeof *values)];
  return static_cast<double>(bits_float(in->u32()));
}

// Draws element i of a run with rows of `columns`.
class Source {
 public:
  explicit Source(Bytes* in)
      : in_(in),
        sort_(in->byte() % 12),
        scale_(std::exp2(static_cast<double>(in->below(256)) - 128)),
        random_(in->byte()),
        constant_(any_value(in)) {}

  double draw(int64_t i, int64_t columns) {
    switch (sort_) {
      case 0:
        return 0;
      case 1:
        return constant_;
      case 2:  // any bits: infinities and NaNs too
        return static_cast<double>(bits_float(static_cast<uint32_t>(random_.bits())));
      case 3:  // any sign and magnitude but these
        return static_cast<double>(bits_float(static_cast<uint32_t>(random_.bits()) & 0xff7fffffu));
      case 4:
        return i % 2 == 0 ? scale_ : 1 / scale_;
      case 5:  // no two blocks alike, no two elements alike
        return std::ldexp(1.0 + random_.unit(), static_cast<int>(i * 7 % 250) - 126);
      case 6:
        return random_.below(50) == 0 ? scale_ * test::gaussian(&random_) : 0.0;
      case 7:
        return 1e-42 * test::gaussian(&random_);
      case 8: {  // a product of two narrow matrices, and some noise
        const double row = static_cast<double>(i / columns % 97 - 48);
        const double column = static_cast<double>(i % columns % 89 - 44);
        return scale_ * (row * column + 0.5 * test::gaussian(&random_));
      }
      case 9:  // columns of different scales
        return scale_ * std::exp2(static_cast<double>(i % columns % 13)) * test::gaussian(&random_);
      case 10:
        return static_cast<double>(bits_float(in_->u32()));
      default:
        return scale_ * test::generalized_gaussian(0.7, &random_);
    }
  }

 private:
  Bytes* in_;
  int sort_;
  double scale_;
  test::Random random_;
  double constant_;
};

inline double any_target(Target target, Bytes* in) {
  const double bits[] = {0.01, 0.3, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 12.0, 31.9, 40.0, 1e300};
  const double snr_db[] = {0.01, 1.0, 3.0, 12.0, 20.0, 60.0, 90.0, 200.0, 1e300};
  const double steps[] = {1e-300, 1e-45, 1e-38, 1e-30, 1e-4, 0.5, 1.0, 3.0, 1e30, 3e38, 1e300};
  const uint8_t exact = in->byte();
  if (exact % 4 == 0) {
    const float value = bits_float(in->u32());
    return static_cast<double>(value);
  }
  if (target == Target::kBits) return in->one_of(bits);
  return target == Target::kSnrDb ? in->one_of(snr_db) : in->one_of(steps);
}

inline CodecParams any_params(Bytes* in) {
  CodecParams p;
  p.kind = static_cast<Kind>(in->below(4));
  p.target = static_cast<Target>(in->below(3));
  p.value = any_target(p.target, in);
  if (p.kind == Kind::kFixed && in->byte() % 8 != 0) {
    p.target = Target::kBits;
    p.value = static_cast<double>(1 + in->below(8));
  }
  const int allocations[] = {8, 0, 4, 1, 7, 2, 3, 5, 6};
  p.allocation8 = in->one_of(allocations);
  const uint8_t way = in->byte();
  p.rounding = static_cast<Rounding>(way % 4 == 0 && p.kind != Kind::kFixed);
  if (way / 4 % 2 != 0 && (p.kind == Kind::kGG || way > 250)) p.effort = Effort::kHigh;
  if (way / 8 % 4 == 3 && (p.kind == Kind::kGG || p.kind == Kind::kEG || way > 250))
    p.reconstruction = Reconstruction::kUnitGain;
  p.seed = in->u32();
  const int ranks[] = {0, 4, 16, 1, 0};
  p.max_rank = in->one_of(ranks);
  return p;
}

// What encode() has to take, as codec.h describes it.
inline bool sound(const CodecParams& p) {
  const bool plain = p.kind == Kind::kGG && p.rounding == Rounding::kDeterministic;
  if (p.effort == Effort::kHigh && !plain) return false;
  if (p.reconstruction == Reconstruction::kUnitGain) {
    const bool entropy_coded = p.kind == Kind::kGG || p.kind == Kind::kEG;
    if (!entropy_coded || p.rounding != Rounding::kDeterministic || p.effort == Effort::kHigh ||
        p.target == Target::kSnrDb)
      return false;
  }
  if (p.kind == Kind::kRaw) return true;
  if (!std::isfinite(p.value) || p.value <= 0) return false;
  if (p.kind != Kind::kFixed) return true;
  return p.target == Target::kBits && p.value <= 8 && p.value == std::floor(p.value);
}

struct Case {
  CodecParams params;
  std::unique_ptr<test::Input> input;

  Case(const uint8_t* data, size_t size) {
    Bytes in(data, size);
    params = any_params(&in);
    test::Values values;
    values.dtype = static_cast<DType>(in.below(4));
    const bool quick = params.effort == Effort::kNormal && params.max_rank == 0;
    const std::vector<int64_t> lengths = any_lengths(&in, quick);
    const int64_t widths[] = {0, 1, 2, 8, 40, 64, 100, 300, -5, int64_t{1} << 40};
    const int64_t columns = in.one_of(widths);
    const int64_t first = columns > 0 ? in.byte() % columns : 0;
    add_values(&in, lengths, columns, &values);
    input = std::make_unique<test::Input>(std::move(values), lengths, columns);
    for (Run& run : input->runs) run.first_column = first;
  }

 private:
  // Negative: a raw run. quick: no slow encoder.
  static std::vector<int64_t> any_lengths(Bytes* in, bool quick) {
    std::vector<int64_t> lengths;
    const uint8_t way = in->byte();
    if (way == 252 && quick) return {kManyElements};
    const bool tiny = way % 4 == 3;
    const int64_t runs = tiny ? in->below(kMostRuns) : in->below(6);
    int64_t left = kMostElements;
    const int64_t some[] = {1, 0, 255, 256, 257, 31, 7, 1009, 5000, 300};
    const uint32_t pattern = tiny ? in->u32() : 0;
    for (int64_t i = 0; i < runs; ++i) {
      const int64_t wanted = tiny ? (pattern >> (i % 16 * 2)) % 4 : in->one_of(some);
      const int64_t length = std::min(wanted, left);
      const bool raw = tiny ? (pattern & 1) != 0 && i % 5 == 4 : in->byte() % 5 == 4;
      lengths.push_back(raw ? -length : length);
      left -= length;
    }
    return lengths;
  }

  // One source for all runs, or each its own; then single elements of any value.
  static void add_values(Bytes* in, const std::vector<int64_t>& lengths, int64_t columns,
                         test::Values* values) {
    const bool own = in->byte() % 2 != 0 && lengths.size() < 8;
    const int64_t width = columns > 0 ? columns : 1;
    std::vector<double> x;
    std::unique_ptr<Source> source;
    for (const int64_t length : lengths) {
      if (source == nullptr || own) source = std::make_unique<Source>(in);
      for (int64_t i = 0; i < std::abs(length); ++i) x.push_back(source->draw(i, width));
    }
    for (int64_t changes = in->byte() % 8; changes > 0 && !x.empty(); --changes) {
      const size_t at = in->u32() % x.size();
      x[at] = any_value(in);
    }
    for (const double value : x) values->push(value);
  }
};

}  // namespace gct::fuzz
