#include "torch/engine.h"

#include <unistd.h>

#include <cstring>
#include <stdexcept>
#include <utility>

namespace gct {

namespace {

// Slices in flight: in the first shot one is encoded while one is on the wire and one is decoded;
// in the second one is on the wire while one is decoded.
constexpr size_t kFirstExchanges = 3;
constexpr size_t kSecondExchanges = 2;

// What a ring without compression would send from each rank, in the tensor's own dtype.
int64_t ring_bytes(const Job& job, int world) {
  const int64_t bytes = job.numel * dtype_bytes(job.dtype);
  switch (job.spec.collective) {
    case Collective::kAllReduce:
      return 2 * bytes * (world - 1) / world;
    case Collective::kReduceScatter:
      return bytes * (world - 1) / world;
    default:
      return bytes * (world - 1);
  }
}

// How much of a job's extent makes a slice. All ranks' parts of it are on their way together: of a
// tensor that is reduced once, or of one for each rank.
int64_t slice_extent(const Job& job, int world) {
  const int64_t tensors = job.spec.collective == Collective::kAllReduce ? 1 : world;
  return slice_numel(job.extent * tensors, world) / tensors;
}

const char* collective_name(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    default:
      return "all_gather";
  }
}

// In a world of one the result is the input, without the error that encoding would add.
void copy_alone(const Job& job) {
  if (!job.spec.output.defined() || job.numel == 0) return;
  memmove(job.result_at(0), job.input_at(0), job.spec.input.nbytes());
}

}  // namespace

Engine::Engine(const std::string& first_group, const std::string& second_group, int threads,
               bool check_hashes)
    : owner_pid_(getpid()),
      check_hashes_(check_hashes),
      pool_(threads),
      first_(first_group, second_group, 0, &wire_),
      second_(second_group, first_group, 1, &wire_),
      shots_(&first_, &second_, &pool_, &counters_),
      first_ring_(kFirstExchanges),
      second_ring_(kSecondExchanges),
      front_thread_([this] { run_front(); }),
      back_thread_([this] { run_back(); }),
      tail_thread_([this] { run_tail(); }) {}

Engine::~Engine() { close(); }

bool Engine::in_forked_child() const { return getpid() != owner_pid_; }

bool Engine::on_own_thread() const {
  const auto self = std::this_thread::get_id();
  return self == front_thread_.get_id() || self == back_thread_.get_id() ||
         self == tail_thread_.get_id();
}

void Engine::close() {
  if (in_forked_child()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    closed_ = true;
    if (failure_.empty()) failure_ = Closed().what();
    close_rings();
  }
  first_.close();
  second_.close();
  jobs_.close();
  front_thread_.join();
  sent_.close();
  back_thread_.join();
  reduced_.close();
  tail_thread_.join();
  wire_.close();
}

int64_t Engine::scratch_bytes() const {
  return shots_.capacity_bytes() + agreement_.capacity_bytes() + first_ring_.capacity_bytes() +
         second_ring_.capacity_bytes();
}

void Engine::submit(JobSpec spec) {
  if (in_forked_child()) {
    throw std::runtime_error("gct: collectives can't be used in a forked child process");
  }
  auto job = std::make_shared<Job>(std::move(spec), size());
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) throw std::runtime_error(failure_);
  counters_.jobs.fetch_add(1);
  counters_.raw_bytes.fetch_add(ring_bytes(*job, size()));
  jobs_.push(std::move(job));  // before close() closes the queue
}

std::string Engine::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void Engine::fail(const Job& job, const char* doing, const std::exception& error) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_.empty()) return;
    failure_ =
        c10::str("gct: ", collective_name(job.spec.collective), " of ", job.spec.name,
                 " failed on rank ", rank(), " of ", size(), " while ", doing, ": ", error.what(),
                 "\nThis group's compressed collectives can't go on: end all ranks and "
                 "start again from a checkpoint.");
    close_rings();
  }
  first_.hang_up();  // of both links' groups
}

// With failure_, before another thread can see that: whoever does releases its exchange without
// waiting for its messages, and nobody may fill it again while they are on their way.
void Engine::close_rings() {
  first_ring_.close();
  second_ring_.close();
}

// Front thread.

void Engine::run_front() {
  name_thread("gct front");
  while (auto job = jobs_.pop()) send_job(*job);
}

Flight Engine::make_flight(const std::shared_ptr<Job>& job, Range range) const {
  Flight flight;
  flight.job = job;
  flight.range = range;
  if (job->spec.collective == Collective::kReduceScatter) {
    for (int64_t owner = 0; owner < size(); ++owner) {
      const int64_t begin = owner * job->extent;
      flight.chunks.push_back({begin + range.begin, begin + range.end});
    }
  } else if (job->two_shot()) {
    flight.chunks = split_range(range, size());
  }
  return flight;
}

void Engine::send_job(const std::shared_ptr<Job>& job) {
  try {
    if (size() > 1) send_slices(job);
  } catch (const std::exception& error) {
    fail(*job, "encoding and sending", error);
  }
  Flight end;
  end.job = job;
  end.last = true;
  sent_.push(std::move(end));
}

void Engine::send_slices(const std::shared_ptr<Job>& job) {
  bool compared = job->spec.call.empty();
  if (!compared) agreement_.start(job->spec.call, first_);
  const auto compare = [&] {
    const Stopwatch stopwatch(&counters_.wait_ns);
    job->refusal = agreement_.finish(first_);
    compared = true;
  };
  for (const Range& slice : plan_slices(job->extent, slice_extent(*job, size()))) {
    Flight flight = make_flight(job, slice);
    flight.first = first_ring_.acquire();
    if (!flight.first) return;
    shots_.encode(flight, compared);
    if (!compared) compare();  // the others' answers came while the first slice was encoded
    if (!job->refusal.empty()) return first_ring_.release(flight.first);
    shots_.send(flight);
    sent_.push(std::move(flight));
  }
  if (!compared) compare();  // an empty tensor
}

// Back thread.

void Engine::run_back() {
  name_thread("gct back");
  while (auto flight = sent_.pop()) {
    const std::shared_ptr<Job> job = flight->job;
    const bool last = flight->last;
    if (flight->first) receive(*flight);
    reduced_.push(std::move(*flight));
    // Comparing hashes needs the second group's exchanges in an order that doesn't depend on
    // timing.
    if (last && check_hashes_) job->ended.get_future().wait();
  }
}

void Engine::receive(Flight& flight) {
  const Job& job = *flight.job;
  if (failure().empty()) {
    try {
      if (job.two_shot() && job.spec.collective == Collective::kAllReduce) {
        flight.second = second_ring_.acquire();
        if (!flight.second) throw Closed();
      }
      shots_.receive(flight);
    } catch (const std::exception& error) {
      fail(job, "receiving the other ranks' values", error);
    }
  }
  first_ring_.release(flight.first);
}

// Tail thread.

void Engine::run_tail() {
  name_thread("gct tail");
  while (auto flight = reduced_.pop()) {
    if (flight->second) finish(*flight);
    if (flight->last) end_job(*flight->job);
  }
}

void Engine::finish(Flight& flight) {
  if (failure().empty()) {
    try {
      shots_.finish(flight);
    } catch (const std::exception& error) {
      fail(*flight.job, "receiving the result", error);
    }
  }
  second_ring_.release(flight.second);
}

void Engine::end_job(Job& job) {
  if (failure().empty() && job.refusal.empty()) {
    try {
      if (size() == 1) {
        copy_alone(job);
      } else if (check_hashes_ && job.spec.collective != Collective::kReduceScatter) {
        shots_.check_same(job);
      }
    } catch (const std::exception& error) {
      fail(job, "finishing", error);
    }
  }
  const std::string error = failure();
  const std::string& local = !job.refusal.empty() ? job.refusal : job.damage();
  job.spec.on_done(error.empty() ? local : error, !error.empty(), job.run_stats());
  job.ended.set_value();
}

}  // namespace gct
