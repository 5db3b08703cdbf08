#include "cpu/block_setup.h"

namespace gct {

// Deadzone and alphabet of each table of the shape.
void BlockSetup::prepare_tables() {
  const int shape = first_table_ / tables::kTablesPerShape;
  const double origin = ratio - 4 * code.t;
  if (origin == table_ratio_ && shape == table_shape_) return;
  table_ratio_ = origin;
  table_shape_ = shape;
  for (int i = 0; i < tables::kTablesPerShape; ++i) {
    biases_[i] = 0.5f - deadzone_at(shape, origin + 4 * (i + tables::kTableMin));
    limits_[i] = table_magnitudes(first_table_ + i);
  }
}

bool BlockSetup::prepare(const EncodePlan& plan, const BlockPlace& place, const RunCode& run,
                         double log2_step) {
  if (!prepare_block(run, place.scale_class, log2_step, &code, &quantizer)) return false;
  const RunPlan& p = plan.runs[place.run];
  ratio = (8 - run.allocation8) * place.scale_class - 16 * log2_step;
  quantizer.stochastic = plan.params->rounding == Rounding::kStochastic;
  quantizer.seed = plan.params->seed;
  quantizer.position =
      plan.input->runs[place.run].position + static_cast<uint64_t>(place.block * kBlock);
  choice = nullptr;
  if (p.header.columns == 0) return true;
  first_table_ = run.shape * tables::kTablesPerShape;
  prepare_tables();
  const int8_t* offsets =
      block_offsets(&plan.ws->profiles[p.profile], p.header.columns, place.block);
  choose_tables(code.t, offsets, place.n, choice_);
  quantizer.tables = choice = choice_;
  quantizer.biases = biases_;
  quantizer.limits = limits_;
  return true;
}

}  // namespace gct
