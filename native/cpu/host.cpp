#include "cpu/host.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <vector>

namespace rfn::cpu {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// First number of a file, kNoLimit for "max", otherwise `missing`.
int64_t read_number(const std::string& path, int64_t missing) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word)) return missing;
  if (word == "max") return kNoLimit;
  char* end = nullptr;
  const long long value = std::strtoll(word.c_str(), &end, 10);
  return end == word.c_str() ? missing : value;
}

// Value of the line "key value" or "key: value ...".
int64_t read_key(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size(), key) == 0 && line.size() > key.size() &&
        (line[key.size()] == ' ' || line[key.size()] == ':')) {
      return std::strtoll(line.c_str() + key.size() + 1, nullptr, 10);
    }
  }
  return 0;
}

// Directories of this process's control group for a controller, innermost first: version 2 ("0::/path") or 1
// ("N:memory:/path"). Inside a container the path may be the host's and not exist here; the mount's root is then the
// container's own group.
std::vector<std::string> control_groups(const std::string& controller, bool* version2) {
  std::ifstream file("/proc/self/cgroup");
  std::string line, path, mount;
  while (std::getline(file, line)) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is2 = controllers == ",,";
    if (!is2 && controllers.find("," + controller + ",") == std::string::npos) continue;
    if (is2 && !mount.empty()) continue;  // a version 1 hierarchy that has the controller wins
    path = line.substr(second + 1);
    mount = is2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
    *version2 = is2;
  }
  std::vector<std::string> groups;
  if (mount.empty()) return groups;
  while (path.size() > 1) {
    groups.push_back(mount + path);
    path.resize(path.rfind('/'));
  }
  groups.push_back(mount);
  return groups;
}

void limit(HostMemory& memory, int64_t most, int64_t used) {
  if (most == kNoLimit) return;
  memory.total_bytes = std::min(memory.total_bytes, most);
  memory.free_bytes = std::min(memory.free_bytes, std::max<int64_t>(0, most - used));
}

}  // namespace

int32_t host_processors() {
  int64_t count = std::max<int64_t>(1, sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    count = std::max(1, CPU_COUNT(&set));  // fails on machines of over 1,024 processors
  bool version2 = false;
  for (const std::string& group : control_groups("cpu", &version2)) {
    int64_t quota = -1, period = 0;  // microseconds of processor time per period; "max" or -1: no limit
    if (version2) {
      std::ifstream file(group + "/cpu.max");
      std::string word;
      if (file >> word >> period && word != "max") quota = std::strtoll(word.c_str(), nullptr, 10);
    } else {
      quota = read_number(group + "/cpu.cfs_quota_us", -1);
      period = read_number(group + "/cpu.cfs_period_us", 0);
    }
    if (quota > 0 && period > 0) count = std::min(count, (quota + period - 1) / period);
  }
  return static_cast<int32_t>(std::max<int64_t>(1, count));
}

HostMemory host_memory() {
  HostMemory memory;
  memory.total_bytes = read_key("/proc/meminfo", "MemTotal") * 1024;
  memory.free_bytes = read_key("/proc/meminfo", "MemAvailable") * 1024;
  bool version2 = false;
  for (const std::string& group : control_groups("memory", &version2)) {
    // Pages of files that nobody has used lately count as used, but go when memory is asked for.
    if (version2) {
      limit(memory, read_number(group + "/memory.max", kNoLimit),
            read_number(group + "/memory.current", 0) - read_key(group + "/memory.stat", "inactive_file"));
    } else {
      limit(memory, read_number(group + "/memory.limit_in_bytes", kNoLimit),
            read_number(group + "/memory.usage_in_bytes", 0) - read_key(group + "/memory.stat", "total_inactive_file"));
    }
  }
  rlimit address_space = {};
  if (getrlimit(RLIMIT_AS, &address_space) == 0 && address_space.rlim_cur != RLIM_INFINITY) {
    limit(memory, static_cast<int64_t>(address_space.rlim_cur),
          read_number("/proc/self/statm", 0) * sysconf(_SC_PAGESIZE));
  }
  return memory;
}

std::string host_processor_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, 10, "model name") != 0) continue;
    const size_t start = line.find_first_not_of(" \t", line.find(':') + 1);
    if (start != std::string::npos) return line.substr(start);
  }
  return "unknown processor";
}

}  // namespace rfn::cpu
