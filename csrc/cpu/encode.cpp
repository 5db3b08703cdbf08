// From values to a segment: analyze, choose effort and step, have it written.
#include <algorithm>
#include <cmath>

#include "codec.h"
#include "core/rate_target.h"
#include "cpu/low_rank_encoder.h"
#include "cpu/piece_classes.h"
#include "cpu/rate.h"
#include "cpu/restore.h"
#include "cpu/scratch.h"
#include "cpu/segment_writer.h"

namespace gct {
namespace {

constexpr int kMaxAttempts = 6;
// Share of a slot's payload that factors of low-rank parts may take: column profiles may have 4 %.
constexpr double kMostForFactors = 0.9;
constexpr double kCloseEnough = 0.98;  // 0.1 dB
constexpr double kShort = 0.75;        // of the slot

// How a step is searched for that fills the slot.
struct Search {
  int attempts;
  int patience;        // attempts that go by the model alone
  double pace;         // changes of the step in those of the model
  double least_share;  // of the way between a step too fine and one too coarse
};
constexpr Search kPlainSearch = {kMaxAttempts, 0, 1, 0.1};
// The trellis' rate falls up to half as fast with the step as the model's; that of data of one
// magnitude from 1 bit to 0.2 in a tenth of an octave, which takes more attempts, by halves.
constexpr Search kTrellisSearch = {12, 2, 1.5, 0.35};

class SegmentEncoder {
 public:
  SegmentEncoder(const CodecParams& params, const EncodeInput& input, uint8_t* out, size_t capacity,
                 Workspace& ws, EncodeStats* stats, OwnValues* own)
      : params_(params),
        input_(input),
        capacity_(capacity),
        ws_(ws),
        sizes_(params, input),
        plan_(ws.scratch().plan),
        stats_(stats),
        own_(own),
        writer_(params_, input, sizes_, &ws, stats, out, capacity) {}

  Status run(size_t* written) {
    analyze(params_, input_, ws_, &plan_);
    separate_low_rank();
    measure_profiles(&plan_);
    writer_.make_sections(use_low_rank_ ? &low_rank_.section() : nullptr);
    const Status status = encode_plan(written);
    if (stats_ != nullptr) add_stats();
    // The input may be overwritten now.
    if (own_ != nullptr)
      own_->restored =
          status == Status::kOk && !use_low_rank_ && restore_values(plan_, own_->factor, own_->out);
    return status;
  }

 private:
  void add_stats() {
    stats_->numel = sizes_.numel;
    stats_->nonfinite_runs = plan_.nonfinite_runs;
    for (const RunPlan& p : plan_.runs)
      stats_->coded_numel += p.header.mode == RunMode::kCoded ? p.header.numel : 0;
  }

  // Where low-rank parts pay, the plan becomes that of the residuals. Not with the step in
  // proportion to the block's scale (exponent 1): there the residual's rate would stay what it is,
  // and smaller exponents leave less error, relative to the blocks, too (docs/decisions.md).
  void separate_low_rank() {
    signal_ = plan_.signal;
    const bool pieces = params_.kind == Kind::kGG || params_.kind == Kind::kEG;
    if (!pieces || params_.max_rank == 0 || params_.allocation8 >= 8) return;
    // Zeros alone must fit the slot beside the factors, whatever the residuals are.
    const double room = static_cast<double>(slot_bytes(params_, input_)) -
                        static_cast<double>(sizes_.headers + plan_.raw_numel * sizes_.raw_bytes) -
                        static_cast<double>(writer_.num_pieces() * kPieceOverheadBytes);
    if (!low_rank_.encode(plan_, room, kMostForFactors * room)) return;
    const std::vector<RunStats> stats = ws_.run_stats;
    plan_of_residuals();
    bool sound = low_rank_.pays(plan_);
    // Factors alone may come closer than asked; nothing in the residual could take that back.
    const double error = allowed_error();
    for (int i = 0; i < kMaxAttempts && sound && params_.target == Target::kSnrDb; ++i) {
      if (plan_.signal >= kCloseEnough * error) break;
      const double octaves = 0.5 * std::log2(error / std::max(plan_.signal, 0.01 * error));
      sound = low_rank_.encode_coarser(std::max(octaves, 0.02));
      if (sound) plan_of_residuals();
    }
    use_low_rank_ = sound;
    if (!sound) analyze(params_, input_, ws_, &plan_);
    ws_.run_stats = stats;
  }

  // Of a target in dB: the squared error over the coded runs.
  double allowed_error() const { return signal_ * std::pow(10.0, -params_.value / 10); }

  void plan_of_residuals() { analyze(params_, low_rank_.input(), ws_, &plan_); }

  // The step to begin with. Isolated values among zeros are better off without the trellis: each
  // would have to fit the state that the zeros leave. The sample says which way has less error for
  // its bits.
  double choose_effort(RateControl* control) {
    if (params_.effort == Effort::kNormal) return solve(control);
    params_.effort = Effort::kNormal;
    const double normal = control->sampled_cost(solve(control));
    params_.effort = Effort::kHigh;
    const double log2_step = solve(control);
    if (control->sampled_cost(log2_step) < normal) return log2_step;
    params_.effort = Effort::kNormal;
    return solve(control);
  }

  double solve(RateControl* control) const {
    if (params_.target == Target::kSnrDb) return control->step_for_error(allowed_error());
    return control->step_for_bits(8 * std::max(bytes_of_symbols(), 0.0));
  }

  Status encode_plan(size_t* written) {
    if (params_.kind == Kind::kRaw) return writer_.write_all_raw(written);
    if (params_.kind == Kind::kFixed) return writer_.write_fixed(written);
    if (plan_.coded_blocks == 0) return writer_.write_pieces(capacity_, written);
    if (params_.target == Target::kBits) return encode_for_bits(written);
    RateControl control(plan_);
    const bool exact = params_.target == Target::kStep;
    control.apply(exact ? std::log2(params_.value) : choose_effort(&control), &plan_);
    if (exact) set_exact_step(static_cast<float>(params_.value));
    if (!all_blocks_have_codes()) return writer_.write_all_raw(written);
    const Status status =
        writer_.write_pieces(std::min(capacity_, static_cast<size_t>(sizes_.all_raw())), written);
    return status == Status::kTooSmall ? writer_.write_all_raw(written) : status;
  }

  size_t slot_to_fill() const { return std::min(capacity_, slot_bytes(params_, input_)); }
  double bytes_of_symbols() const { return kAim * static_cast<double>(slot_to_fill()) - overhead_; }

  Status encode_for_bits(size_t* written) {
    const size_t slot = slot_to_fill();
    if (static_cast<size_t>(sizes_.all_raw()) <= slot) return writer_.write_all_raw(written);
    overhead_ = fixed_overhead();
    const bool asked = params_.effort == Effort::kHigh;
    RateControl control(plan_);
    const Status status = fill(slot, choose_effort(&control), &control, written);
    const bool short_of =
        static_cast<double>(writer_.total_size()) < kShort * static_cast<double>(slot);
    if (status != Status::kOk || !asked || params_.effort == Effort::kHigh || !short_of)
      return status;
    // Data of one magnitude: no step of the plain quantizer comes near.
    params_.effort = Effort::kHigh;
    assign_classes(0, plan_.coded_blocks, &plan_);  // where the last step made zeros of blocks
    overhead_ = fixed_overhead();
    RateControl again(plan_);
    return fill(slot, solve(&again), &again, written);
  }

  // Encodes with the step of rate control. Where the size misses the target it is encoded again:
  // first with a step changed by what the model says of the miss, then with one between a step that
  // was too fine and one that was too coarse.
  Status fill(size_t slot, double log2_step, RateControl* control, size_t* written) {
    const bool trellis = params_.effort == Effort::kHigh;
    const Search search = trellis ? kTrellisSearch : kPlainSearch;
    const double aim = bytes_of_symbols();
    Trial fine, coarse;  // the closest ones over and under the slot
    for (int attempt = 0; attempt < search.attempts; ++attempt) {
      control->apply(log2_step, &plan_);
      const Status status = writer_.write_pieces(slot, written);
      const Trial trial = {true, log2_step, static_cast<double>(writer_.total_size()) - overhead_};
      if (status == Status::kOk) {
        coarse = trial;
        control->keep();
        const double enough = kAcceptFrom - kPatience * attempt;
        if (static_cast<double>(writer_.total_size()) >= enough * static_cast<double>(slot))
          return status;
      } else {
        fine = trial;
      }
      const double factor = aim / std::max(trial.size, 1.0);
      // Data that no step makes large enough (one magnitude, a few values) stay under their target.
      const bool give_up = !fine.known && (!trellis || attempt >= search.patience);
      if (status == Status::kOk && factor > 4 && give_up) return status;
      if (fine.known && coarse.known) {
        const double share = (fine.size - aim) / (fine.size - coarse.size);
        const double least = search.least_share;
        log2_step = fine.log2_step + std::min(std::max(share, least), 1 - least) *
                                         (coarse.log2_step - fine.log2_step);
      } else {
        // Where the model's change doesn't get under the slot (exp-Golomb takes a bit an element up
        // to the step that zeroes whole blocks), octaves do.
        const bool stuck = status != Status::kOk && attempt > search.patience;
        const double least = stuck ? std::exp2(attempt - 1) : -1e3;
        log2_step += std::max(search.pace * control->change_for_factor(log2_step, factor), least);
        log2_step = control->within(log2_step);  // beyond, large blocks have no code
      }
    }
    if (coarse.known) {
      control->apply_kept(&plan_);
    } else {
      control->apply(control->coarsest(), &plan_);
    }
    const Status status = writer_.write_pieces(slot, written);
    if (status == Status::kOk || capacity_ < slot_bytes(params_, input_)) return status;
    // Only with blocks so large (means over 2^108) that no step within float32 makes zeros of them
    // and too few bits for anything else: a NaN is loud, zeros wouldn't be.
    for (RunPlan& p : plan_.runs) {
      if (p.header.mode == RunMode::kCoded) p.header.mode = RunMode::kNonFinite;
      p.header.columns = 0;
    }
    writer_.drop_sections();
    plan_.coded_blocks = 0;
    return writer_.write_pieces(slot, written);
  }

  struct Trial {
    bool known = false;
    double log2_step = 0, size = 0;  // bytes of symbols
  };

  // Bytes that don't depend on the step. Of a lane's 4 bytes about one holds symbols.
  double fixed_overhead() {
    const double lanes = params_.kind == Kind::kGG ? 0.75 * kLaneBytes : 0;
    return static_cast<double>(sizes_.headers + plan_.raw_numel * sizes_.raw_bytes) +
           static_cast<double>(writer_.sections_bytes()) + class_bits(&plan_) / 8 +
           static_cast<double>(writer_.num_pieces()) * (lanes + kPieceEntryBytes + 0.5);
  }

  void set_exact_step(float step) {
    for (RunPlan& p : plan_.runs) p.header.code.step = step;
  }

  bool all_blocks_have_codes() const {
    bool ok = true;
    for_each_block(plan_, 0, plan_.coded_blocks, [&](size_t r, int64_t local, int n, int64_t b) {
      BlockCode code;
      const RunHeader& run = plan_.runs[r].header;
      const int c = ws_.classes[static_cast<size_t>(b)];
      if (!ok || c == kZeroClass) return;
      ok = block_code(run.code, c, &code);
      if (ok && run.columns > 0 && code.shift > kSafeShiftOfProfiles)
        ok = magnitudes_fit(r, local, n, code.step);
    });
    return ok;
  }

  bool magnitudes_fit(size_t r, int64_t block, int n, float step) const {
    float scratch[kBlock];
    const float* x = load_floats(plan_.input->runs[r], input_.dtype, block * kBlock, n, scratch);
    const float limit = step * kMagnitudeLimit;
    return std::all_of(x, x + n, [&](float value) { return std::fabs(value) < limit; });
  }

  CodecParams params_;  // choose_effort() changes it
  const EncodeInput& input_;
  size_t capacity_;
  Workspace& ws_;
  SegmentSizes sizes_;
  EncodePlan& plan_;
  EncodeStats* stats_;
  OwnValues* own_;
  SegmentWriter writer_;
  LowRankEncoder low_rank_;
  bool use_low_rank_ = false;
  double overhead_ = 0;  // for a target in bits: bytes that don't depend on the step
  double signal_ = 0;    // sum of squares over the coded runs, low-rank parts included
};

// Targets in dB are of the error, which unit gain gives up.
bool unit_gain_valid(const CodecParams& p) {
  return (p.kind == Kind::kGG || p.kind == Kind::kEG) && p.target != Target::kSnrDb &&
         p.rounding == Rounding::kDeterministic && p.effort == Effort::kNormal;
}

bool valid(const CodecParams& p, const EncodeInput& input) {
  if (input.num_runs < 0 || (input.num_runs > 0 && input.runs == nullptr)) return false;
  for (int64_t i = 0; i < input.num_runs; ++i) {
    if (input.runs[i].numel < 0 || (input.runs[i].numel > 0 && input.runs[i].data == nullptr))
      return false;
  }
  if (p.effort == Effort::kHigh && (p.kind != Kind::kGG || p.rounding != Rounding::kDeterministic))
    return false;
  if (p.reconstruction == Reconstruction::kUnitGain && !unit_gain_valid(p)) return false;
  if (p.kind == Kind::kRaw) return true;
  if (p.allocation8 < 0 || p.allocation8 > 8 || !std::isfinite(p.value)) return false;
  if (p.kind == Kind::kFixed) {
    return p.target == Target::kBits && p.rounding == Rounding::kDeterministic && p.value >= 1 &&
           p.value <= 8 && p.value == std::floor(p.value);
  }
  return p.value > 0 && p.max_rank >= 0 && p.max_rank <= kLowRankWidth;
}

}  // namespace

Status encode(const CodecParams& params, const EncodeInput& input, uint8_t* out, size_t capacity,
              size_t* written, Workspace& workspace, EncodeStats* stats, OwnValues* own) {
  if (!valid(params, input) || out == nullptr || written == nullptr) return Status::kBadArgument;
  return SegmentEncoder(params, input, out, capacity, workspace, stats, own).run(written);
}

}  // namespace gct
