/* GCC 12's static libstdc++ has a random_device, which nothing here uses, on a function that came with glibc 2.36. With
   one of our own the kit's programs start on 2.35 too, that of Ubuntu 22.04. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/random.h>

uint32_t arc4random(void) {
  uint32_t word = 0;
  if (getrandom(&word, sizeof word, 0) != sizeof word) abort();
  return word;
}
