/* Preloaded: tells the process that the machine has ASCEND_SIM_CORES cores. With fewer than 12, MindSpore 2.8.0 does not compile a
 * graph with an `if` on a tensor ("Can not build a sub graph which contains ConditionSwitch"). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

int get_nprocs(void) {
  const char *cores = getenv("ASCEND_SIM_CORES");
  return cores ? atoi(cores) : 16;
}
int get_nprocs_conf(void) { return get_nprocs(); }

long sysconf(int name) {
  static long (*real)(int);
  if (!real) real = (long (*)(int))dlsym(RTLD_NEXT, "sysconf");
  return name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF ? get_nprocs() : real(name);
}
