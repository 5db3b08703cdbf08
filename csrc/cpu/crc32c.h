// CRC32C (Castagnoli; RFC 3720, appendix B.4): finds every error of up to 3 bits in a segment and
// all but one in 2^32 of the others.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gct {

// Of data[0, bytes), by the processor's own instruction where it has one.
uint32_t crc32c(const void* data, size_t bytes);

// The same by tables, on any processor; for tests.
uint32_t crc32c_by_tables(const void* data, size_t bytes);

}  // namespace gct
