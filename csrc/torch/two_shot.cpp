// The steps of an all-reduce in two shots, and of a reduce-scatter, which is the first of them.
#include <algorithm>

#include "torch/float_ops.h"
#include "torch/shots.h"

namespace gct {

namespace {

// Streams of random bits (SegmentCoder::encode): one for each rank and shot.
uint64_t stream(int rank, int shot) { return 2 * static_cast<uint64_t>(rank) + shot; }

}  // namespace

void Shots::encode_chunks(Flight& flight) {
  Job& job = *flight.job;
  Exchange& exchange = *flight.first;
  const DType dtype = job.has_residual() ? DType::kFloat32 : job.dtype;
  const auto world = static_cast<size_t>(size());
  const auto self = static_cast<size_t>(rank());

  int64_t capacity = 0;
  for (size_t owner = 0; owner < world; ++owner) {
    if (owner != self) capacity += front_.slot_bytes(job, flight.chunks[owner], dtype);
  }
  uint8_t* out = exchange.send.reserve(capacity);
  if (job.has_residual()) add_gradient(job, flight.range);

  exchange.send_bytes.assign(world, 0);
  for (size_t owner = 0; owner < world; ++owner) {
    const Range chunk = flight.chunks[owner];
    if (owner == self || chunk.numel() == 0) continue;
    const void* data =
        job.has_residual() ? job.residual_at(chunk.begin) : job.input_at(chunk.begin);
    const int64_t bytes = front_.encode(job, chunk, data, dtype, stream(rank(), 0), out, &job.sent);
    if (job.has_residual()) keep_error(job, chunk, out, bytes, 1.0f, front_);
    exchange.send_bytes[owner] = bytes;
    out += bytes;
  }
}

// This rank's exact values of the chunk that it owns, as float32, where the others' are going to be
// added.
float* Shots::begin_sum(const Flight& flight, Range own) {
  const Job& job = *flight.job;
  const bool scatter = job.spec.collective == Collective::kReduceScatter;
  float* sum = job.in_place
                   ? static_cast<float*>(job.result_at(scatter ? flight.range.begin : own.begin))
                   : sum_.reserve(own.numel());
  if (job.has_residual()) {
    const float* values = job.residual_at(own.begin);
    std::copy(values, values + own.numel(), sum);
  } else if (const void* values = job.input_at(own.begin); values != sum) {
    to_float(job.dtype, values, sum, own.numel());
  }
  return sum;
}

void Shots::receive_chunk(Flight& flight) {
  Job& job = *flight.job;
  Exchange& exchange = *flight.first;
  const Range own = flight.chunks[static_cast<size_t>(rank())];
  if (flight.second) {
    set_second_sizes(flight);
    if (job.slots_known) second_->expect(*flight.second);
  }
  wait(exchange, *first_);

  float* sum = begin_sum(flight, own);
  const uint8_t* in = exchange.recv.data();
  for (int sender = 0; sender < size(); ++sender) {
    if (sender == rank()) continue;
    const int64_t bytes = exchange.recv_bytes[static_cast<size_t>(sender)];
    back_.decode(job, in, bytes, sum, own.numel(), /*accumulate=*/true, sender, &job.sent_damage);
    in += bytes;
  }
  if (job.spec.mean) divide(sum, static_cast<float>(size()), own.numel());

  if (flight.second) {
    send_result(flight, own, sum);
  } else if (!job.in_place) {
    from_float(job.dtype, sum, job.result_at(flight.range.begin), own.numel());
  }
}

void Shots::set_second_sizes(Flight& flight) {
  std::vector<int64_t>& bytes = flight.second->recv_bytes;
  bytes.clear();
  for (const Range chunk : flight.chunks) {
    bytes.push_back(back_.slot_bytes(*flight.job, chunk, DType::kFloat32));
  }
  bytes[static_cast<size_t>(rank())] = 0;
}

void Shots::send_result(Flight& flight, Range own, const float* mean) {
  Job& job = *flight.job;
  Exchange& exchange = *flight.second;
  const int64_t slot = back_.slot_bytes(job, own, DType::kFloat32);
  uint8_t* out = exchange.send.reserve(slot);
  exchange.own_bytes =
      back_.encode(job, own, mean, DType::kFloat32, stream(rank(), 1), out, &job.reduced);
  if (job.has_residual()) {
    // The error of the mean of W gradients, in units of one rank's gradient, is W times as large.
    std::copy(mean, mean + own.numel(), job.residual_at(own.begin));
    const float factor = job.spec.mean ? static_cast<float>(size()) : 1.0f;
    keep_error(job, own, out, exchange.own_bytes, factor, back_);
  }
  send_to_all(exchange);
  start(job, exchange, *second_);
}

void Shots::finish(Flight& flight) {
  Job& job = *flight.job;
  Exchange& exchange = *flight.second;
  wait(exchange, *second_);
  const uint8_t* in = exchange.recv.data();
  for (int owner = 0; owner < size(); ++owner) {
    const Range chunk = flight.chunks[static_cast<size_t>(owner)];
    const bool self = owner == rank();
    const int64_t bytes =
        self ? exchange.own_bytes : exchange.recv_bytes[static_cast<size_t>(owner)];
    float* out = job.in_place ? static_cast<float*>(job.result_at(chunk.begin))
                              : result_.reserve(chunk.numel());
    tail_.decode(job, self ? exchange.send.data() : in, bytes, out, chunk.numel(),
                 /*accumulate=*/false, owner, self ? nullptr : &job.result_damage);
    if (!job.in_place) from_float(job.dtype, out, job.result_at(chunk.begin), chunk.numel());
    if (!self) in += bytes;
  }
}

}  // namespace gct
