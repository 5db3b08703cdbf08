// The steps of an all-reduce in one shot, and of an all-gather, which doesn't add.
#include "torch/float_ops.h"
#include "torch/shots.h"

namespace gct {

// Whether a rank's decoded values may take the place of what was encoded, for the other one's to be
// added; the same on both. Of two values the sum is the same in either order, but for two NaNs,
// which restore_values() leaves to decode(), and for -0 where the other one's zeros are a run or
// block that decode() doesn't add: see add_whole().
bool Shots::may_add_in_place(const Job& job) const {
  const CodecParams& codec = job.spec.codec;
  return size() == 2 && job.spec.collective == Collective::kAllReduce && job.in_place &&
         !job.has_residual() && codec.kind == Kind::kGG &&
         codec.rounding == Rounding::kDeterministic;
}

// Whether decoded values are multiplied by a rank's share, so that their sum is the mean and needs
// no pass of its own: where that is exact, of 2, 4, 8, ... ranks.
bool Shots::adds_shares(const Job& job) const {
  return job.spec.mean && (size() & (size() - 1)) == 0;
}

float Shots::share(const Job& job) const {
  return adds_shares(job) ? 1 / static_cast<float>(size()) : 1.0f;
}

void Shots::encode_whole(Flight& flight, bool compared) {
  Job& job = *flight.job;
  Exchange& exchange = *flight.first;
  const Range range = flight.range;
  const DType dtype = job.has_residual() ? DType::kFloat32 : job.dtype;
  if (job.has_residual()) add_gradient(job, range);
  const void* data = job.has_residual() ? job.residual_at(range.begin) : job.input_at(range.begin);

  const int64_t slot = front_.slot_bytes(job, range, dtype);
  uint8_t* out = exchange.send.reserve(slot);
  const auto stream = static_cast<uint64_t>(rank());
  OwnValues own;
  // A probe reads the values again.
  if (compared && may_add_in_place(job) && !job.spec.probe)
    own.out = static_cast<float*>(job.result_at(range.begin));
  own.factor = share(job);
  exchange.own_bytes = front_.encode(job, range, data, dtype, stream, out, &job.sent,
                                     own.out != nullptr ? &own : nullptr);
  exchange.own_added = own.restored;
  if (job.has_residual()) keep_error(job, range, out, exchange.own_bytes, 1.0f, front_);
  send_to_all(exchange);
}

void Shots::add_whole(Flight& flight) {
  Job& job = *flight.job;
  Exchange& exchange = *flight.first;
  const int64_t numel = flight.range.numel();
  wait(exchange, *first_);

  void* result = job.result_at(flight.range.begin);
  float* sum = job.in_place ? static_cast<float*>(result) : sum_.reserve(numel);
  const uint8_t* in = exchange.recv.data();
  for (int sender = 0; sender < size(); ++sender) {
    const bool self = sender == rank();
    const int64_t bytes =
        self ? exchange.own_bytes : exchange.recv_bytes[static_cast<size_t>(sender)];
    if (self && exchange.own_added) continue;
    back_.decode(job, self ? exchange.send.data() : in, bytes, sum, numel,
                 /*accumulate=*/sender > 0 || exchange.own_added, sender,
                 self ? nullptr : &job.sent_damage, share(job));
    if (!self) in += bytes;
  }
  if (may_add_in_place(job) && !exchange.own_added)
    make_zeros_positive(sum, numel);  // as on the other rank if that one has restored its own
  if (job.spec.mean && !adds_shares(job)) divide(sum, static_cast<float>(size()), numel);
  if (!job.in_place) from_float(job.dtype, sum, result, numel);
}

void Shots::place_all(Flight& flight) {
  Job& job = *flight.job;
  Exchange& exchange = *flight.first;
  const int64_t numel = flight.range.numel();
  wait(exchange, *first_);

  const uint8_t* in = exchange.recv.data();
  for (int sender = 0; sender < size(); ++sender) {
    const bool self = sender == rank();
    const int64_t bytes =
        self ? exchange.own_bytes : exchange.recv_bytes[static_cast<size_t>(sender)];
    void* result = job.result_at(sender * job.numel + flight.range.begin);
    float* out = job.in_place ? static_cast<float*>(result) : sum_.reserve(numel);
    back_.decode(job, self ? exchange.send.data() : in, bytes, out, numel, /*accumulate=*/false,
                 sender, self ? nullptr : &job.sent_damage);
    if (!job.in_place) from_float(job.dtype, out, result, numel);
    if (!self) in += bytes;
  }
}

}  // namespace gct
