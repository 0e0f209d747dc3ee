// What the machine, and the limits this process runs under (affinity, control groups, resource limits), leave to it.
#pragma once
#include <cstdint>
#include <string>

namespace rfn::cpu {

// Processors the process may use: its affinity mask, and no more than the processor quota of its control groups
// (rounded up).
int32_t host_processors();

struct HostMemory {
  int64_t free_bytes;   // what can still be allocated: available memory and the room under every limit
  int64_t total_bytes;  // the machine's memory or the lowest limit
};
HostMemory host_memory();

std::string host_processor_name();

}  // namespace rfn::cpu
