#include "cpu/scratch.h"

namespace gct {
namespace {

template <typename... Vectors>
size_t bytes_of(const Vectors&... vectors) {
  return (size_t{0} + ... + (vectors.capacity() * sizeof(typename Vectors::value_type)));
}

}  // namespace

size_t DecodeScratch::capacity_bytes() const {
  size_t total = sizeof *this + factors.capacity_bytes() +
                 bytes_of(layout.runs, layout.low_rank.parts, pieces, profiles, coded, workers);
  for (const PieceScratch& worker : workers) total += bytes_of(worker.blocks[0], worker.blocks[1]);
  return total;
}

size_t Scratch::capacity_bytes() const {
  size_t total = sizeof *this +
                 bytes_of(plan.runs, sections, class_histograms, column_abs, column_square,
                          column_inverse, column_offsets, trellis, run_begins, decode) +
                 bytes_of(rate.groups, rate.sample_groups, rate.refined_groups, rate.sample,
                          rate.refined_sample, rate.offsets, rate.best_offsets, rate.kept_offsets,
                          rate.offset_shares, rate.codes, rate.bits, rate.class_counts,
                          rate.stretch_bits, rate.meters, rate.run_sample) +
                 rate.trellis.capacity_bytes();
  for (const auto& meter : rate.meters) total += sizeof *meter + bytes_of(meter->extra);
  for (const TrellisScratch& thread : trellis) total += thread.capacity_bytes();
  for (const auto& scratch : decode) total += scratch->capacity_bytes();
  return total;
}

}  // namespace gct
