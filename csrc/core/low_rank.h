// The section of low-rank parts: fields, offsets and checks. A run may be the sum of what its
// blocks say and a product of two narrow matrices; these are coded as a segment of their own.
// docs/wire-format.md is the same in words.
//
//   u32 parts | part: u32 run, u32 columns, u32 first column, u32 rank, rank x f32 gain | ...
//   | u32 length | a segment of any kind: for each part its right factor, then its left
#pragma once

#include <vector>

#include "core/common.h"

namespace gct {

constexpr int64_t kMaxRank = 64;
constexpr size_t kLowRankPartBytes = 16;

struct LowRankPart {
  uint32_t run = 0;     // index among the segment's runs
  int64_t columns = 0;  // length of a row
  int64_t first = 0;    // column of the run's first element
  int64_t rank = 0;
  int64_t rows = 0;                // that the run's elements touch
  const uint8_t* gains = nullptr;  // rank little-endian float32

  int64_t right_numel() const { return columns * rank; }
  int64_t left_numel() const { return rows * rank; }
  int64_t factor_numel() const { return right_numel() + left_numel(); }
  float gain(int64_t k) const { return bits_float(load_le<uint32_t>(gains + 4 * k)); }
};

inline int64_t low_rank_rows(int64_t numel, int64_t columns, int64_t first) {
  return div_up(first + numel, columns);
}

struct LowRankSection {
  std::vector<LowRankPart> parts;
  const uint8_t* factors = nullptr;  // the segment
  size_t factors_bytes = 0;
  int64_t factor_numel = 0;
  size_t bytes = 0;  // of the whole section

  void clear() {
    parts.clear();
    factors = nullptr;
    factors_bytes = bytes = 0;
    factor_numel = 0;
  }
};

// Reads a part at p, of which `left` bytes may be read. run_numel(i): elements of run i if it is
// coded or zero, else 0.
template <typename RunNumel>
bool read_low_rank_part(const uint8_t* p, size_t left, RunNumel run_numel, LowRankPart* part) {
  if (left < kLowRankPartBytes) return false;
  part->run = load_le<uint32_t>(p);
  part->columns = load_le<uint32_t>(p + 4);
  part->first = load_le<uint32_t>(p + 8);
  part->rank = load_le<uint32_t>(p + 12);
  const int64_t numel = run_numel(part->run);
  if (part->rank < 1 || part->rank > kMaxRank || part->columns < 1 || part->columns > numel ||
      part->first >= part->columns)
    return false;
  if (left < kLowRankPartBytes + 4 * static_cast<size_t>(part->rank)) return false;
  part->rows = low_rank_rows(numel, part->columns, part->first);
  part->gains = p + kLowRankPartBytes;
  // Factors are smaller than what they stand for: a few bytes can't ask for much memory.
  return part->factor_numel() <= numel;
}

// The section at p, of which `left` bytes may be read; false if it breaks a rule.
template <typename RunNumel>
bool read_low_rank_section(const uint8_t* p, size_t left, RunNumel run_numel,
                           LowRankSection* section) {
  if (left < 4) return false;
  const uint32_t count = load_le<uint32_t>(p);
  size_t at = 4;
  if (count < 1 || count > left / kLowRankPartBytes) return false;
  section->parts.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    LowRankPart& part = section->parts[i];
    if (!read_low_rank_part(p + at, left - at, run_numel, &part)) return false;
    if (i > 0 && part.run <= section->parts[i - 1].run) return false;
    section->factor_numel += part.factor_numel();
    at += kLowRankPartBytes + 4 * static_cast<size_t>(part.rank);
  }
  if (left - at < 4) return false;
  section->factors_bytes = load_le<uint32_t>(p + at);
  section->factors = p + at + 4;
  if (section->factors_bytes > left - at - 4) return false;
  section->bytes = at + 4 + section->factors_bytes;
  return true;
}

}  // namespace gct
