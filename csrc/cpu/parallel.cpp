// Notices forks, see parallel.h.
#include "cpu/parallel.h"

#include <pthread.h>
#ifdef __linux__
#include <dirent.h>
#endif

// torch brings OpenMP; where it was built without, there is no team.
extern "C" {
int omp_get_max_threads() __attribute__((weak));
void omp_set_num_threads(int) __attribute__((weak));
}

namespace fastssl {
namespace {

thread_local bool lost = false;  // a child's copy of it is the parent's, so that grandchildren know too
bool others = true;              // whether the process had other threads when it was forked last

// A team is other threads: without any there is none to lose. Where they cannot be counted they may be there.
bool has_other_threads() {
#ifdef __linux__
  DIR* tasks = opendir("/proc/self/task");
  if (!tasks) return true;
  int count = 0;
  for (const dirent* each; (each = readdir(tasks));) count += each->d_name[0] != '.';
  closedir(tasks);
  return count > 1;
#else
  return true;
#endif
}

void before_fork() { others = has_other_threads(); }
void in_child() { lost = lost || others; }

[[maybe_unused]] const int watched = pthread_atfork(before_fork, nullptr, in_child);

}  // namespace

bool lost_its_team() { return lost; }

Alone::Alone() : before_(omp_get_max_threads ? omp_get_max_threads() : 1) {
  if (omp_set_num_threads) omp_set_num_threads(1);
}
Alone::~Alone() {
  if (omp_set_num_threads) omp_set_num_threads(before_);
}

int thread_count() {
  uint32_t count;
  FASTSSL_TORCH(torch_get_num_threads(&count));
  return int(count);
}

int thread_index() {
  uint32_t index;
  FASTSSL_TORCH(torch_get_thread_idx(&index));
  return int(index);
}

}  // namespace fastssl
