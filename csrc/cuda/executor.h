// Where batches are carried out: on a GPU, or on the CPU by the kernels' bodies.
#pragma once

#include <memory>
#include <string>

#include "cuda/batch.h"

namespace gct::gpu {

class Executor {
 public:
  virtual ~Executor() = default;

  // `stream` is a cudaStream_t. They return before the device is done, and throw
  // std::runtime_error for what CUDA reports.
  virtual void encode(const EncodeBatch& batch, void* stream) = 0;
  virtual void decode(const DecodeBatch& batch, void* stream) = 0;
  virtual const CodingTables& tables() const = 0;
};

// The kernels' bodies as loops on the calling thread: for tests and debugging, far slower than the
// codec.
Executor& host_executor();

#if defined(GCT_BUILD_CUDA)
// Whether kernels can run here: empty if so, else the reason.
std::string cuda_problem();
// The executor of a GPU; made, and its tables copied there, at the first call. Throws
// std::runtime_error where kernels can't run.
Executor& cuda_executor(int device);
#endif

}  // namespace gct::gpu
