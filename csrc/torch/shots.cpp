#include "torch/shots.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "torch/float_ops.h"

namespace gct {

Shots::Shots(Link* first, Link* second, ThreadPool* pool, Counters* counters)
    : first_(first),
      second_(second),
      counters_(counters),
      front_(pool, counters),
      back_(pool, counters),
      tail_(pool, counters) {}

int64_t Shots::capacity_bytes() const {
  return front_.capacity_bytes() + back_.capacity_bytes() + tail_.capacity_bytes() +
         sum_.capacity_bytes() + result_.capacity_bytes() + hashes_.capacity_bytes();
}

void Shots::encode(Flight& flight, bool compared) {
  const Job& job = *flight.job;
  flight.first->send_from.clear();
  flight.first->recv_to.clear();
  set_first_sizes(flight);
  if (job.exact) hand_over_exact(flight);
  if (compared && job.slots_known) first_->expect(*flight.first);
  if (job.exact) return;
  if (job.two_shot()) {
    encode_chunks(flight);
  } else {
    encode_whole(flight, compared);
  }
}

// What shot 1 receives: segments' sizes or, where they can't be known, their bounds.
void Shots::set_first_sizes(Flight& flight) {
  const Job& job = *flight.job;
  const auto self = static_cast<size_t>(rank());
  const DType dtype = job.has_residual() ? DType::kFloat32 : job.dtype;
  const Range range = job.two_shot() ? flight.chunks[self] : flight.range;
  std::vector<int64_t>& bytes = flight.first->recv_bytes;
  const int64_t exact_bytes = range.numel() * int64_t{sizeof(float)};
  bytes.assign(static_cast<size_t>(size()),
               job.exact ? exact_bytes : front_.slot_bytes(job, range, dtype));
  bytes[self] = 0;
}

void Shots::send(Flight& flight) { start(*flight.job, *flight.first, *first_); }

void Shots::receive(Flight& flight) {
  const bool gather = flight.job->spec.collective == Collective::kAllGather;
  if (flight.job->exact) {
    gather ? place_exact(flight) : add_exact(flight);
  } else if (gather) {
    place_all(flight);
  } else if (flight.job->two_shot()) {
    receive_chunk(flight);
  } else {
    add_whole(flight);
  }
}

void Shots::wait(Exchange& exchange, Link& link) {
  const Stopwatch stopwatch(&counters_->wait_ns);
  link.wait(exchange);
}

// Every other rank gets the segment in exchange.send[0, own_bytes). An all-gather of equal slots
// would pad all of them to the largest, and raw runs make chunks differ; this moves the exact bytes
// in one hop.
void Shots::send_to_all(Exchange& exchange) const {
  const auto world = static_cast<size_t>(size());
  exchange.send_bytes.assign(world, exchange.own_bytes);
  exchange.send_bytes[static_cast<size_t>(rank())] = 0;
  exchange.send_from.assign(world, exchange.send.view(0, exchange.own_bytes));
}

void Shots::start(const Job& job, Exchange& exchange, Link& link) {
  if (!job.slots_known) exchange_sizes(exchange, link);
  link.start(exchange);
}

// Sizes that others announce decide how much memory is reserved.
void Shots::exchange_sizes(Exchange& exchange, Link& link) {
  const int64_t limit = *std::max_element(exchange.recv_bytes.begin(), exchange.recv_bytes.end());
  {
    const Stopwatch stopwatch(&counters_->wait_ns);
    link.exchange_sizes(exchange);
  }
  for (size_t sender = 0; sender < exchange.recv_bytes.size(); ++sender) {
    if (exchange.recv_bytes[sender] >= 0 && exchange.recv_bytes[sender] <= limit) continue;
    throw std::runtime_error("rank " + std::to_string(sender) + " announced a segment of " +
                             std::to_string(exchange.recv_bytes[sender]) + " bytes, at most " +
                             std::to_string(limit) + " are possible");
  }
}

// Error feedback. The residual is what this rank has not sent yet, in units of its gradient; it is
// added before anything is encoded and afterwards holds what encoding left out.
void Shots::add_gradient(const Job& job, Range range) {
  add_to_float(job.dtype, job.input_at(range.begin), job.residual_at(range.begin), range.numel());
}

// residual = (residual - decoded) * factor; it holds the encoder's input.
void Shots::keep_error(const Job& job, Range range, const uint8_t* wire, int64_t bytes,
                       float factor, SegmentCoder& coder) {
  float* residual = job.residual_at(range.begin);
  negate(residual, range.numel());
  coder.decode(job, wire, bytes, residual, range.numel(), /*accumulate=*/true, rank(), nullptr);
  scale_finite(residual, -factor, range.numel());
}

void Shots::check_same(const Job& job) {
  const at::Tensor& result = job.spec.output.defined() ? job.spec.output : job.spec.input;
  const uint64_t mine = hash_bytes(result.data_ptr(), static_cast<int64_t>(result.nbytes()));
  store_le<uint64_t>(hashes_.send.reserve(int64_t{sizeof mine}), mine);
  hashes_.own_bytes = sizeof mine;
  hashes_.recv_bytes.assign(static_cast<size_t>(size()), sizeof mine);
  hashes_.recv_bytes[static_cast<size_t>(rank())] = 0;
  send_to_all(hashes_);
  second_->start(hashes_);
  wait(hashes_, *second_);
  const uint8_t* in = hashes_.recv.data();
  for (int sender = 0; sender < size(); ++sender) {
    if (sender == rank()) continue;
    if (load_le<uint64_t>(in) != mine) {
      throw std::runtime_error(
          "GCT_DEBUG=hash: rank " + std::to_string(sender) + " has another result than rank " +
          std::to_string(rank()) +
          ": a bit that flipped on the way (try checksum=True), or a bug of gct");
    }
    in += sizeof mine;
  }
}

}  // namespace gct
