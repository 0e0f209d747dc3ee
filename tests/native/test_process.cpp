// The library as a guest of a process: short of memory or threads, after fork, after dlclose. It never ends the process
// and never hangs; what it can't do is a status with a sentence.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

namespace rfn::test {
namespace {

struct Ended {
  int code;  // 124: it took over half a minute
  std::string output;
};

Ended shell(const std::string& command) {
  std::FILE* const pipe = popen(("exec 2>&1; " + command).c_str(), "r");
  std::string output;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.append(buffer, n);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), output};
}

// A story of process.cpp with a number of threads, after a shell command such as ulimit.
Ended tell(const std::string& story, int threads, const std::string& before = "true") {
  return shell(before + "; exec timeout 30 " RFN_TEST_PROCESS " " + story + " " RFN_TEST_LIBRARY " " +
               std::to_string(threads));
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> all;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    all.push_back(text.substr(begin, end - begin));
  return all;
}

std::string expected_bits() {
  static const std::string bits = tell("threads", 1).output;
  return bits;
}

// Every one of so many lines is the result that one thread gives.
testing::AssertionResult SameBitsTimes(const Ended& ended, size_t times) {
  const std::vector<std::string> printed = lines(ended.output);
  bool same = ended.code == 0 && printed.size() == times;
  for (const std::string& line : printed) same = same && line + "\n" == expected_bits();
  if (same) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "expected " << times << " times " << expected_bits() << "got, with exit code "
                                     << ended.code << ":\n"
                                     << ended.output;
}

// The result, or a status that says that memory ran out.
testing::AssertionResult DoneOrOutOfMemory(const Ended& ended, const std::string& result) {
  if (ended.code == 0 && ended.output == result) return testing::AssertionSuccess();
  if (ended.code == 1 && ended.output.rfind("status 3: ", 0) == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "exit code " << ended.code << ": " << ended.output;
}

bool limits_of_memory_work() {
#if defined(__SANITIZE_ADDRESS__)
  return false;
#else
  return true;
#endif
}
#define RFN_NEEDS_LIMITS() \
  if (!limits_of_memory_work()) GTEST_SKIP() << "the address sanitizer needs more address space than any limit"

TEST(Process, OneThread_PrintsBits) {
  const Ended ended = tell("threads", 1);
  EXPECT_EQ(ended.code, 0) << ended.output;
  EXPECT_EQ(ended.output.rfind("bits ", 0), 0u) << ended.output;
}

TEST(Process, NoFurtherThread_SameBits) {
  RFN_NEEDS_LIMITS();
  for (const int threads : {2, 64}) EXPECT_TRUE(SameBitsTimes(tell("processes", threads), 1));
}

TEST(Process, AddressSpaceForFewThreads_SameBitsOrStatus) {
  RFN_NEEDS_LIMITS();
  bool done = false;
  for (const int megabytes : {60, 70, 80, 100, 150, 200, 400}) {
    for (const int threads : {1, 64}) {
      const Ended ended = tell("threads", threads, "ulimit -v " + std::to_string(megabytes * 1024));
      if (ended.output.find("failed to map") != std::string::npos) continue;  // not even the library itself fits
      EXPECT_TRUE(DoneOrOutOfMemory(ended, expected_bits())) << megabytes << " MB, " << threads << " threads";
      done |= ended.code == 0;
    }
  }
  EXPECT_TRUE(done);
  EXPECT_TRUE(SameBitsTimes(tell("threads", 64, "ulimit -v 400000"), 1));
}

TEST(Process, NoMoreMemory_OutOfMemory) {
  RFN_NEEDS_LIMITS();
  for (const int threads : {1, 64}) {
    const Ended ended = tell("memory", threads);
    EXPECT_EQ(ended.code, 1);
    EXPECT_EQ(ended.output.rfind("status 3: rfn_context_create: ", 0), 0u) << ended.output;
  }
}

// A program that trains: any limit ends in seconds, with a result or a sentence.
TEST(Process, TrainingShortOfMemory_Ends) {
  RFN_NEEDS_LIMITS();
  for (int megabytes = 60; megabytes <= 200; megabytes += 10) {
    const Ended ended = shell("ulimit -v " + std::to_string(megabytes * 1024) + "; exec timeout 30 " RFN_TEST_EXAMPLE);
    const bool loaded = ended.output.find("error while loading shared libraries") == std::string::npos;
    EXPECT_TRUE(ended.code == 0 || ended.code == 1 || !loaded) << megabytes << " MB: " << ended.code << ended.output;
    EXPECT_FALSE(ended.output.empty());
    if (megabytes == 200) {
      EXPECT_EQ(ended.code, 0) << ended.output;
    }
  }
}

TEST(Process, Fork_ChildrenWork) {
  for (const int threads : {1, 2, 8}) EXPECT_TRUE(SameBitsTimes(tell("fork", threads), 4));
}

TEST(Process, ForkWhileOthersWork_ChildrenWork) { EXPECT_TRUE(SameBitsTimes(tell("busyfork", 4), 20)); }

TEST(Process, CloseAndLoadAgain_Works) { EXPECT_TRUE(SameBitsTimes(tell("reload", 4), 3)); }

}  // namespace
}  // namespace rfn::test
