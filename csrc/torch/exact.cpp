// A reduce-scatter or all-gather of float32 as it is, from tensor to tensor: what the ranks of a
// host do before and after they compress. Segments would copy all of it twice, which takes longer
// than the wire inside a host.
#include "torch/float_ops.h"
#include "torch/shots.h"

namespace gct {

namespace {

at::Tensor part_of(const at::Tensor& tensor, Range range) {
  return tensor.detach().view({-1}).narrow(0, range.begin, range.numel());
}

}  // namespace

// Front thread: where messages come from and, for an all-gather, where they go to.
void Shots::hand_over_exact(Flight& flight) {
  const Job& job = *flight.job;
  Exchange& exchange = *flight.first;
  const bool gather = job.spec.collective == Collective::kAllGather;
  exchange.send_bytes = exchange.recv_bytes;  // all chunks of a slice are as long
  for (int other = 0; other < size(); ++other) {
    const Range sent = gather ? flight.range : flight.chunks[static_cast<size_t>(other)];
    exchange.send_from.push_back(part_of(job.spec.input, sent));
    if (!gather) continue;
    const int64_t begin = other * job.numel;
    exchange.recv_to.push_back(
        part_of(job.spec.output, {begin + flight.range.begin, begin + flight.range.end}));
  }
  const int64_t numel = flight.range.numel() * (gather ? 1 : size() - 1);
  counters_->encoded_numel.fetch_add(numel);
  counters_->encoded_bytes.fetch_add(numel * int64_t{sizeof(float)});
}

// Back thread: the others' values are added to this rank's in the order of ranks.
void Shots::add_exact(Flight& flight) {
  const Job& job = *flight.job;
  wait(*flight.first, *first_);
  const Stopwatch stopwatch(&counters_->decode_ns);
  const Range own = flight.chunks[static_cast<size_t>(rank())];
  float* sum = begin_sum(flight, own);
  const uint8_t* in = flight.first->recv.data();
  for (int others = size() - 1; others > 0; --others) {
    add_to_float(DType::kFloat32, in, sum, own.numel());
    in += own.numel() * int64_t{sizeof(float)};
  }
  if (job.spec.mean) divide(sum, static_cast<float>(size()), own.numel());
}

// Back thread: the others' values are in their place already.
void Shots::place_exact(Flight& flight) {
  const Job& job = *flight.job;
  wait(*flight.first, *first_);
  const void* own = job.input_at(flight.range.begin);
  void* place = job.result_at(rank() * job.numel + flight.range.begin);
  if (place != own)
    to_float(DType::kFloat32, own, static_cast<float*>(place), flight.range.numel());
}

}  // namespace gct
