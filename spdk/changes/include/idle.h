/* How a reactor without work sleeps and is woken (spdk/src/hooks/idle.rs). Weak: SPDK's own programs link without. */

#ifndef OPI_IDLE_H
#define OPI_IDLE_H

#include <stdint.h>

struct spdk_thread;

/* A turn of this core's reactor has ended: on its thread. It may sleep here, and returns for how many ticks it did;
 * busy_tsc and now are the reactor's. */
uint64_t __attribute__((weak)) opi_idle_turn(uint32_t core, uint64_t busy_tsc, uint64_t now);

/* What this descriptor is readable for ends sleeps of the reactor of this core, until it is to be closed. */
void __attribute__((weak)) opi_idle_watch(uint32_t core, int fd);
void __attribute__((weak)) opi_idle_unwatch(int fd);

/* There is something for the reactor of this core: on any thread, after it has been queued. */
void __attribute__((weak)) opi_idle_wake(uint32_t core);

/* The core whose reactor polls this thread, UINT32_MAX for none; of SPDK's event library. */
uint32_t __attribute__((weak)) opi_idle_core(const struct spdk_thread *thread);

#endif
